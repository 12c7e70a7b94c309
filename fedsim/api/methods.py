"""Methods: what there is, checks and audits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from fedsim.api.run import Run
from fedsim.errors import UserError, at
from fedsim.interrupts import kept_handlers
from fedsim.plugins.notebook import name_of
from fedsim.plugins.registry import find_in_working_folder
from fedsim.privacy.plan import Trust, Unit
from fedsim.words import Printed, plain_console, print_line, wide_console

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from fedsim.data.embeddings import Embeddings
    from fedsim.evidence.audit.audit import AuditRun
    from fedsim.evidence.audit.black_box import BlackBox
    from fedsim.evidence.audit.inversion import Inversion
    from fedsim.evidence.check.check import CheckResult
    from fedsim.results.store import ResultStore

Attack = Literal["white-box", "one-run", "black-box", "inversion"]
"""How an audit looks."""
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
        lines: in words.
        refuted: whether a bound with 95 % confidence is above the claim; False proves nothing.
    """

    name: str
    lines: tuple[str, ...]
    refuted: bool

    def show(self, console: Console) -> None:
        """Print the words."""
        for line in self.lines:
            print_line(console, f"{self.name}: {line}")


def audit(
    algorithm: str | type,
    *,
    epsilon: float = 4.0,
    delta: float = 1e-4,
    unit: Unit = "example",
    trust: Trust = "aggregate",
    params: Given = (),
    attack: Attack = "white-box",
    pairs: int | None = None,
    dataset: str | None = None,
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
        attack: ``white-box``: pairs of trainings; ``one-run``: many canaries in one DP-SGD training; ``black-box``: what is released;
            ``inversion``: rows reconstructed from one client's gradient or update, an illustration.
        pairs: of trainings, canaries, or attacked clients; default: 1000 (white-box), 400 (one-run), 200 (black-box), 3 (inversion).
        dataset: for inversion, as in a grid; default: digits.
        rows: other rows of each client, through which the unit may act.
        out: the folder of the results.

    Raises:
        UserError: a value does not do, or another fedsim runs in the folder.
    """
    from rich.markup import escape
    from rich.progress import Progress

    from fedsim.evidence.audit.inversion import Inversion
    from fedsim.plugins.own_errors import own_errors
    from fedsim.results.store import ResultStore

    if dataset is not None and attack != "inversion":
        raise UserError("--dataset", f"means nothing for --attack {attack}", "leave it out, or give --attack inversion")
    name, store, console = _named(algorithm), ResultStore(out), wide_console(plain_console(), 100)
    with kept_handlers(), own_errors(name):
        looked = _looked(name, attack, _texts(params), (unit, trust, epsilon, delta), pairs, dataset, rows)
        with store.lock(), Progress(console=console, transient=True) as progress:
            task = progress.add_task(escape(name), total=looked.count)
            words, refuted = looked.completed(
                store.audit_pairs(looked.key),
                lambda lines: store.append("pairs", ({"audit": looked.key, **line} for line in lines)),
                lambda count: progress.update(task, completed=count),
            )
    if isinstance(looked, Inversion):
        console.print(looked.table(store.audit_pairs(looked.key)))
    return Audited(f"{name}, {unit}, {trust}", tuple(words), refuted)


def _looked(
    name: str,
    attack: Attack,
    params: Sequence[str],
    claim: tuple[Unit, Trust, float, float],
    pairs: int | None,
    dataset: str | None,
    rows: int,
) -> AuditRun | BlackBox | Inversion:
    """What an audit runs."""
    from fedsim.evidence.audit.audit import AuditRun
    from fedsim.evidence.audit.black_box import BlackBox
    from fedsim.evidence.audit.inversion import Inversion
    from fedsim.evidence.audit.one_run import MANY_DIM
    from fedsim.evidence.audit.setting import ROW_DIM, parameters, setting_of_options

    if attack == "inversion":
        return Inversion(name, parameters(name, params, *claim), *claim, _embeddings(dataset or "digits"), pairs or 3)
    if attack == "black-box":
        return BlackBox(name, parameters(name, params, *claim), *claim, pairs or 200)
    dim, count = (MANY_DIM, 400) if attack == "one-run" else (ROW_DIM, 1000)
    return AuditRun(setting_of_options(name, params, *claim, dim, rows), attack, pairs or count)


def _embeddings(dataset: str) -> Embeddings:
    """The data set that an option names."""
    from fedsim.data.sources.load import load
    from fedsim.data.sources.spec import DatasetSpec
    from fedsim.grid.read import parse_option

    spec = parse_option(DatasetSpec, "--dataset", dataset, {}).within(Path.cwd())
    with at("--dataset"):
        return load(spec)


def _named(algorithm: str | type) -> str:
    find_in_working_folder()
    return name_of(algorithm) if isinstance(algorithm, type) else algorithm


def _texts(params: Given) -> list[str]:
    """Parameters as ``key=YAML`` texts."""
    if not isinstance(params, Mapping):
        return list(params)
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in params.items()}
    return [f"{name}={yaml.safe_dump(value, default_flow_style=True)}" for name, value in plain.items()]
