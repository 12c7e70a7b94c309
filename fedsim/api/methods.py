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
from fedsim.plugins.notebook import name_of
from fedsim.plugins.registry import find_in_working_folder
from fedsim.privacy.plan import Trust, Unit
from fedsim.words import Printed, plain_console, print_line, wide_console

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from fedsim.evidence.check.check import CheckResult
    from fedsim.results.store import ResultStore

Given = Mapping[str, Any] | Sequence[str]
"""Parameters by name, or as ``key=YAML`` texts."""


def algorithms() -> pd.DataFrame:
    """The known algorithms: source, what they yield, claims by unit and trust, parameters with defaults; or why one is refused."""
    import pandas as pd

    from fedsim.api.describe import describe
    from fedsim.plugins.registry import known

    records: list[dict[str, Any]] = []
    for name in known():
        try:
            one = describe(name)
        except UserError as error:
            records.append({"refused": str(error)})
            continue
        defaults = {parameter.name: parameter.default for parameter in one.parameters}
        records.append({"source": one.source, "yields": one.yields, "claims": "; ".join(one.support()), "parameters": defaults})
    return pd.DataFrame(records, index=pd.Index(known(), name="name"))


@dataclass(frozen=True, repr=False)
class Checked(Printed):
    """What a check found.

    Attributes:
        name: of the algorithm.
        findings: of every check in every setting.
        notes: what rows of this code claim now, a sentence for every run folder that the check was for.
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
    """Look for what would void an algorithm's proof or its repeatability: per-example loss, sensitivity, noise, budget, seeds.

    Args:
        algorithm: its name as a grid gives it, or its class, also one that a notebook defines.
        params: of the algorithm, that differ from its defaults.
        unit: this one only; default: all that the class states.
        trust: this one only; default: all that the class states.
        quick: 40 random pairs of neighbouring data sets in place of 400: less is seen.
        verbose: print all that was seen.
        run: a run, or several, whose rows of this code claim what follows: ``checked`` where a full check passed.

    Raises:
        UserError: the algorithm, a parameter or every setting does not do, or a folder is no run.
    """
    from fedsim.evidence.audit.setting import parameters
    from fedsim.evidence.check.check import check_algorithm, check_lines
    from fedsim.evidence.check.subject import DELTA, EPSILON
    from fedsim.plugins.own_errors import own_errors
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
    """Write a check's lines into a run folder; what its rows of that code claim now, in words."""
    from fedsim.results.grid_rows import read_results

    if lines:
        store.append("checks", lines)
    results = read_results(store.folder.path)
    results.write()
    rows = [row for row in results.rows if lines and row.source == lines[0]["source"]]
    claims = ", ".join(f"{count} {claim}" for claim, count in Counter(str(row.claim) for row in rows).items())
    return f"{store.folder.path}: rows of this code: {claims or 'none'}"


@dataclass(frozen=True, repr=False)
class Audited(Printed):
    """What an audit found.

    Attributes:
        name: of the algorithm, with unit and trust.
        line: in words.
        refuted: whether a bound with 95 % confidence is above the claim; False proves nothing.
    """

    name: str
    line: str
    refuted: bool

    def show(self, console: Console) -> None:
        """Print the words."""
        print_line(console, f"{self.name}: {self.line}")


def audit(
    algorithm: str | type,
    *,
    epsilon: float = 4.0,
    delta: float = 1e-4,
    unit: Unit = "example",
    trust: Trust = "aggregate",
    params: Given = (),
    pairs: int = 1000,
    rows: int = 2,
    out: Path | str = Path("runs/audit"),
) -> Audited:
    """Compute a lower bound of ε: train with and without a unit, and let an adversary tell which from every noisy output.

    Interrupted, the same call continues where it stopped; more pairs add to what is there.

    Args:
        algorithm: its name as a grid gives it, or its class, also one that a notebook defines.
        epsilon: that is claimed.
        delta: that is claimed.
        unit: what the claim protects.
        trust: who may see what.
        params: of the algorithm; others are short: six rounds of a small network.
        pairs: of trainings.
        rows: other rows of each client, through which the unit may act.
        out: the folder of the results.

    Raises:
        UserError: a value is not valid, or another fedsim runs in the folder.
    """
    from rich.markup import escape
    from rich.progress import Progress

    from fedsim.evidence.audit.audit import AuditRun
    from fedsim.evidence.audit.setting import brief, parameters, setting_of
    from fedsim.plugins.own_errors import own_errors
    from fedsim.results.store import ResultStore

    name, texts, store, console = _named(algorithm), _texts(params), ResultStore(out), wide_console(plain_console(), 100)
    with kept_handlers(), own_errors(name):
        known = parameters(name, texts, unit, trust, epsilon, delta)
        short = brief(name, {text.partition("=")[0].strip() for text in texts})
        run = AuditRun(setting_of(name, {**known, **short}, unit, trust, epsilon, delta, rows), pairs)
        with store.lock(), Progress(console=console, transient=True) as progress:
            task = progress.add_task(escape(name), total=pairs)
            found = run.completed(
                store.audit_pairs(run.key),
                lambda line: store.append("pairs", [{"audit": run.key, **line}]),
                lambda count: progress.update(task, completed=count),
            )
    return Audited(f"{name}, {unit}, {trust}", found.words(), found.refuted)


def _named(algorithm: str | type) -> str:
    find_in_working_folder()
    return name_of(algorithm) if isinstance(algorithm, type) else algorithm


def _texts(params: Given) -> list[str]:
    """Parameters as ``key=YAML`` texts."""
    if not isinstance(params, Mapping):
        return list(params)
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in params.items()}
    return [f"{name}={yaml.safe_dump(value, default_flow_style=True)}" for name, value in plain.items()]
