"""Methods: what there is, checks and audits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fedsim.api.run import Run
from fedsim.errors import UserError
from fedsim.interrupts import kept_handlers
from fedsim.plugins.registry import check_importable, find_in_working_folder, name_of, own_errors
from fedsim.privacy.plan import Trust, Unit
from fedsim.words import Printed, plain_console, print_line, wide_console

if TYPE_CHECKING:
    from rich.console import Console

    from fedsim.api.describe import Catalogue, Description
    from fedsim.evidence.check.check import CheckResult
    from fedsim.results.store import ResultStore

Given = Mapping[str, Any] | Sequence[str]
"""Parameters by name, or as ``key=YAML`` texts."""


def algorithms(name: str | type | None = None) -> Catalogue | Description:
    """List the algorithms, or show one in full.

    With source, claims and parameters.

    Args:
        name: one to show in full: a name, pkg.module:Class or file.py:Class; in Python also a class.

    Raises:
        UserError: there is none of that name.
    """
    from fedsim.api.describe import Catalogue, describe
    from fedsim.plugins.registry import known

    return Catalogue(tuple(known())) if name is None else describe(name)


@dataclass(frozen=True, repr=False)
class Checked(Printed):
    """What a check found.

    Attributes:
        name: of the algorithm.
        findings: of every check in every setting.
        notes: what the checks of rows of this code say now, a sentence for every run folder that the check was for.
        verbose: whether all findings are printed.
    """

    name: str
    findings: tuple[CheckResult, ...]
    notes: tuple[str, ...] = ()
    verbose: bool = False

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(finding.passed is not False for finding in self.findings)

    @property
    def code(self) -> int:
        """The command's exit code."""
        return 0 if self.passed else 1

    def show(self, console: Console) -> None:
        """Print how many passed, and a row for every fault; of a ``verbose`` check for all that was seen."""
        from fedsim.evidence.check.check import findings_table, in_a_line

        print_line(console, in_a_line(self.name, self.findings))
        if self.verbose or not self.passed:
            console.print(findings_table(self.findings, verbose=self.verbose))
        for note in self.notes:
            print_line(console, note)


def check(
    algorithm: str | type,
    *,
    params: Given = (),
    unit: Unit | None = None,
    trust: Trust | None = None,
    quick: bool = False,
    verbose: bool = False,
    run: Iterable[Run | Path | str] | Run | Path | str = (),
) -> Checked:
    """Look for what would void an algorithm's proof.

    Per-example loss, sensitivity, noise, budget, seeds: it trains on 200 rows of digits and 4 clients for about a minute. The exit code
    is 1 if something failed.

    Args:
        algorithm: its name as a grid gives it, my_file.py:MyMethod or pkg.module:Class; in Python also a class.
        params: a parameter that differs from its default, as often as needed: ``latent=16``; in Python also a mapping.
        unit: this one only; default: all that the class states.
        trust: this one only; default: all that the class states.
        quick: 40 random pairs of neighbouring data sets in place of 400: less is seen.
        verbose: print all that was seen.
        run: a run folder whose rows of this code say in ``check`` what follows: ``passed``, ``failed`` or nothing; as often as needed.

    Raises:
        UserError: the algorithm, a parameter or every setting does not do, or a folder is no run.
    """
    from fedsim.evidence.audit.white_box import parameters
    from fedsim.evidence.check.check import check_algorithm, check_lines
    from fedsim.evidence.check.subject import DELTA, EPSILON
    from fedsim.results.store import ResultStore

    runs = [run] if isinstance(run, Run | Path | str) else list(run)
    stores = [ResultStore(one.folder if isinstance(one, Run) else one) for one in runs]
    for store in stores:
        store.folder.check()
    name, texts = _named(algorithm), _texts(params)
    with own_errors(name):
        in_a_grid = parameters(name, texts, "example", "aggregate", EPSILON, DELTA)
        findings = tuple(check_algorithm(name, texts, unit, trust, quick=quick))
    lines = check_lines(name, in_a_grid, findings, quick=quick)
    return Checked(name, findings, tuple(_noted(store, lines) for store in stores), verbose)


def _noted(store: ResultStore, lines: list[dict[str, Any]]) -> str:
    """Write a check's lines into a run folder; what the checks of its rows of that code say now, in words."""
    from fedsim.results.run import read_results

    if lines:
        store.append("checks", lines)
    results = read_results(store.folder.path)
    results.write()
    rows = [row for row in results.rows if lines and row.source == lines[0]["source"]]
    ends = ", ".join(f"{count} {check}" for check, count in Counter(row.check or "unchecked" for row in rows).items())
    return f"{store.folder.path}: rows of this code: {ends or 'none'}"


@dataclass(frozen=True, repr=False)
class Audited(Printed):
    """What an audit found.

    Attributes:
        name: of the algorithm, with unit and trust; of a run, its folder.
        lines: in words.
        refuted: whether a bound with 95 % confidence is above the claim; False proves nothing.
    """

    name: str
    lines: tuple[str, ...]
    refuted: bool

    @property
    def code(self) -> int:
        """The command's exit code."""
        return 1 if self.refuted else 0

    def show(self, console: Console) -> None:
        """Print the words."""
        for line in self.lines:
            print_line(console, line)


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
    cell: str | None = None,
    trust_plugin: bool = False,
) -> Audited:
    """Compute a lower bound of ε, or attack the generators of a run.

    Of an algorithm: train with and without a unit, and let an adversary tell which from every noisy output. The exit code is 1 if a bound
    with 95 % confidence is above the claim, else 0, which proves nothing. Interrupted, the same command continues where it stopped; more
    pairs add to what is there. Of a run folder: membership inference from the synthetic rows of its generators, which bounds no ε.

    Args:
        algorithm: a name as a grid gives it, my_file.py:MyMethod or pkg.module:Class, in Python also a class; or a run folder.
        epsilon: that is claimed.
        delta: that is claimed.
        unit: what the claim protects.
        trust: who may see what: aggregate, the sum over clients; silo, every message.
        params: a parameter, as often as needed; others are short: six rounds of a small network.
        pairs: of trainings.
        out: the folder of the results.
        cell: of a run folder, the id of the one cell to attack, or its beginning.
        trust_plugin: of a run folder, run the code of plug-ins that it names.

    Raises:
        UserError: a value is out of its range, or another fedsim runs in the folder.
    """
    from rich.markup import escape
    from rich.progress import Progress

    from fedsim.evidence.audit.audit import AuditRun
    from fedsim.evidence.audit.white_box import brief, parameters, setting_of
    from fedsim.results.store import ResultStore

    is_run = not isinstance(algorithm, type) and Path(algorithm).is_dir()
    if not is_run and not isinstance(algorithm, type) and "/" in algorithm and ":" not in algorithm:
        raise UserError(algorithm, "there is no such run folder", "give one, an algorithm's name, or my_file.py:MyMethod")
    of_run = {"cell": cell is not None, "trust_plugin": trust_plugin}
    of_method = {"epsilon": epsilon != 4.0, "delta": delta != 1e-4, "unit": unit != "example", "trust": trust != "aggregate"}
    of_method |= {"params": bool(params), "pairs": pairs != 1000, "out": Path(out) != Path("runs/audit")}
    if idle := next((name for name, given in (of_method if is_run else of_run).items() if given), None):
        what, instead = ("a run folder", "an algorithm") if is_run else (f"{algorithm}, which is not a run folder", "a run folder")
        raise UserError(idle, f"means nothing for {what}", f"leave it out, or give {instead}")
    if is_run:
        return _attacked(Path(str(algorithm)), cell, trust_plugin=trust_plugin)
    name, texts, store, console = _named(algorithm), _texts(params), ResultStore(out), wide_console(plain_console(), 100)
    with kept_handlers(), own_errors(name):
        known = parameters(name, texts, unit, trust, epsilon, delta)
        short = brief(name, {text.partition("=")[0].strip() for text in texts})
        run = AuditRun(setting_of(name, {**known, **short}, unit, trust, epsilon, delta), pairs)
        with store.lock(), Progress(console=console, transient=True) as progress:
            lines = store.audit_pairs(run.key)
            task = progress.add_task(escape(name), total=pairs, completed=len(lines))
            for line in run.missing(lines):
                store.append("pairs", [{"audit": run.key, **line}])
                lines.append(line)
                progress.update(task, completed=len(lines))
    found = run.outcome(lines)
    setting = f"{name}, {unit}, {trust}"
    return Audited(setting, (f"{setting}: {found.words()}",), found.refuted)


def _attacked(folder: Path, cell: str | None, *, trust_plugin: bool) -> Audited:
    """How well membership in the training rows can be inferred from a run's generators."""
    from fedsim.evidence.audit.membership import attack_run
    from fedsim.results.folder import RunFolder
    from fedsim.results.run import read_manifest
    from fedsim.runs.manifest import grid_of

    run = RunFolder(folder)
    run.check()
    lines = attack_run(run, grid_of(read_manifest(folder), run), cell=cell, trust_plugin=trust_plugin)
    return Audited(str(folder), tuple(lines), False)


def _named(algorithm: str | type) -> str:
    find_in_working_folder()
    name = name_of(algorithm) if isinstance(algorithm, type) else algorithm
    check_importable(name, "checks and audits run in fresh ones")
    return name


def _texts(params: Given) -> list[str]:
    """Parameters as ``key=YAML`` texts."""
    if not isinstance(params, Mapping):
        return list(params)
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in params.items()}
    return [f"{name}={yaml.safe_dump(value, default_flow_style=True)}" for name, value in plain.items()]
