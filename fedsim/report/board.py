"""One table over many runs, of rows whose epsilon is proved again: method, budget, score, claim, audit, tuning and public data."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from fedsim.evidence.prove import Proof
from fedsim.report.tables import CLAIM_WORDS, Line, ResultsTable, TableBlock, claim, decimal
from fedsim.report.typeset import typeset
from fedsim.results.groups import Group, Interval, group_seeds, grouped
from fedsim.results.summary import inert
from fedsim.words import Printed, counted, number, print_line, setting, wide_console

if TYPE_CHECKING:
    import pandas as pd

BoardFormat = Literal["md", "html", "csv"]
MEASURE = "balanced_accuracy"
NOTHING = "–"
"""What stands where a line has no value."""
EXACT = "scores are exact functions of real rows, which no ε here covers: publish them only where the data may be"
"""What whoever publishes a board has to know."""


@dataclass(frozen=True)
class Standing:
    """One line of a board: rows of one method, data set, partition and budget, averaged over seeds."""

    group: Group
    score: Interval

    @property
    def facts(self) -> dict[str, Any]:
        """All that the board says of it, by column; numbers as numbers."""
        group, first = self.group, self.group.rows[0]
        audited = max((row.audited_epsilon for row in group.rows), default=0.0)
        tuning = first.tuning
        return {
            "data set": group.dataset,
            "method": group.label,
            "claim": claim([group]),
            "partition": setting(group.scheme or NOTHING, alpha=group.alpha, clients=group.clients),
            "ε": group.epsilon_target,
            "δ": group.delta if group.epsilon_target is not None else None,
            "unit": group.unit,
            "trust": group.trust,
            "balanced accuracy": self.score.mean,
            "sd": self.score.beside,
            "seeds": self.score.count,
            "share of the ceiling": group.mean("share_of_ceiling"),
            "ε by audit, at least": audited or None,
            "tuned": None if tuning is None else "free, on test rows" if tuning.free else "for its price",
            "public data": first.public,
        }


@dataclass(frozen=True, repr=False)
class Board(Printed):
    """A board.

    Attributes:
        standings: its lines, by data set, epsilon and score.
        left_out: how many rows are left out, by method and reason.
    """

    standings: tuple[Standing, ...]
    left_out: Mapping[str, int]

    @classmethod
    def of(cls, proofs: Sequence[Proof]) -> Board:
        """Of rows that are proved, and of rows without a budget; all others are counted."""
        accepted = [proof for proof in proofs if not _refused(proof)]
        groups = group_seeds([proof.row for proof in accepted], "sd")
        standings = [Standing(group, score) for group in groups if (score := group.interval(MEASURE)) is not None]
        standings.sort(key=lambda one: (one.group.dataset, _last(one.group.epsilon_target), -one.score.mean))
        refused = Counter(f"{proof.row.label} on {proof.row.dataset} ({why})" for proof in proofs if (why := _refused(proof)))
        return cls(tuple(standings), refused)

    @property
    def notes(self) -> tuple[str, ...]:
        """What stands under the table."""
        rows = sum(len(standing.group.rows) for standing in self.standings)
        proved = f"{counted(rows, 'row')}, each ε proved from the row alone by fedsim verify"
        left_out = f"left out: {sum(self.left_out.values())}" if self.left_out else "none is left out"
        return (EXACT, f"{proved}; {left_out}", *(f"{count} × {what}" for what, count in self.left_out.items()))

    @property
    def table(self) -> ResultsTable:
        """As tables are typeset: a block a data set."""
        by_set = grouped(self.standings, lambda standing: standing.group.dataset)
        facts = [standing.facts for standing in self.standings]
        columns = tuple(name for name in (facts[0] if facts else ()) if name not in _NAMES)
        blocks = [TableBlock(dataset, (), tuple(map(_line, own))) for dataset, own in by_set.items()]
        return ResultsTable("Board", columns, tuple(blocks), self.notes, name="board")

    @property
    def frame(self) -> pd.DataFrame:
        """A row a line."""
        import pandas as pd

        return pd.DataFrame([standing.facts for standing in self.standings])

    def text(self, as_: BoardFormat = "md") -> str:
        """The board as Markdown, HTML or CSV; what users wrote is escaped."""
        return _csv(self.standings) if as_ == "csv" else typeset([self.table], as_)

    def show(self, console: Console) -> None:
        """Print it."""
        from fedsim.report.tables import TerminalTable

        wide_console(console, 400).print(TerminalTable(self.table))

    def save(self, path: Any, as_: BoardFormat, console: Console) -> None:
        """Write it into a file, at once or not at all."""
        from fedsim.files import replaced

        with replaced(path) as part:
            part.write_text(self.text(as_) + "\n", encoding="utf-8")
        print_line(console, f"board: {path}; {EXACT}")


_NAMES = ("data set", "method", "claim")
_SHOWN: Mapping[str, Callable[[Any], str]] = {"balanced accuracy": decimal, "sd": decimal, "share of the ceiling": decimal}


def _line(standing: Standing) -> Line:
    facts = standing.facts
    return Line(facts["method"], facts["claim"], tuple(_shown(name, value) for name, value in facts.items() if name not in _NAMES))


def _shown(name: str, value: Any) -> str:
    if value is None:
        return NOTHING
    return str(value) if isinstance(value, str) else _SHOWN.get(name, number)(value)


def _csv(standings: Sequence[Standing]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for position, facts in enumerate(standing.facts for standing in standings):
        if not position:
            writer.writerow(facts)
        known = {**facts, "claim": CLAIM_WORDS.get(facts["claim"], facts["claim"])}
        writer.writerow("" if value is None else inert(value) if isinstance(value, str) else value for value in known.values())
    return out.getvalue().rstrip("\n")


def _refused(proof: Proof) -> str:
    """Why a row is on no board; "" if it is on one."""
    if proof.row.status != "ok":
        return proof.row.status
    if proof.verdict in ("proved", "no claim"):
        return ""
    return f"{proof.verdict}: {proof.why}"


def _last(value: float | None) -> float:
    return float("inf") if value is None else min(value, 1e300)
