"""The comparison of two runs of the same settings and seeds, result by result.

It answers whether two runs are equal to the last bit, and if not, which columns differ.
``Run.compare`` returns the comparison of two run folders. ``fedsim verify`` compares results with
the same results computed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from fedsim.errors import UserError
from fedsim.json_lines import dump
from fedsim.report.terminal import frame_table
from fedsim.results.columns import COLUMNS, Row
from fedsim.results.join import read_results
from fedsim.results.store import RunFolder
from fedsim.words import Printed, counted, print_line

_MATCHED_BY = (
    "label",
    "dataset",
    "scheme",
    "alpha",
    "clients",
    "unseen",
    "epsilon_target",
    "delta",
    "unit",
    "trust",
    "seed",
)
"""The columns in which two results must agree to be compared, beside their given parameters."""
_PROVENANCE = {
    "source": "code of {}",
    "evaluation_source": "code that evaluated",
    "counted_by": "code that counted ε",
}
"""The columns that say which code made a result, with the words for them; {} is the algorithm."""
_CLOCK = ("seconds", "train_seconds", "evaluation_seconds")
"""The columns of times, which may differ between equal runs."""
_COMPARED = [
    name
    for name in COLUMNS
    if name not in (*_CLOCK, *_PROVENANCE, "cell_id", "versions", "generator")
]
"""The columns in which equal results may not differ."""
Records = tuple[Sequence[Row], Sequence[Mapping[str, Any]]]
"""The results of a run, and records of rounds, which may include those of other cells."""


@dataclass(frozen=True, repr=False)
class Comparison(Printed):
    """The comparison of two runs: the results that both have, and how they differ.

    Attributes:
        runs: The names of the two runs.
        only: The results that only the first run has, and those that only the second run has.
        matched: One line per setting and seed that both runs have: ``setting``, ``change`` (of
            balanced accuracy, second run minus first), ``rounds`` (whether samples and noise of all
            rounds are equal), and ``differ`` (the names of the columns that differ, without times
            and provenance).
        provenance: Sentences about the code and versions that made the shared results, where these
            differ.
    """

    runs: tuple[str, str]
    only: tuple[Sequence[Row], Sequence[Row]]
    matched: pd.DataFrame
    provenance: Sequence[str]

    @property
    def rows_equal(self) -> bool:
        """Whether all shared results and their rounds are the same to the last bit."""
        return bool(self.matched["rounds"].all() and not self.matched["differ"].any())

    @property
    def equal(self) -> bool:
        """Whether nothing differs but cell ids, times, and the record of a saved generator."""
        return self.rows_equal and not any(self.only) and not self.provenance

    def show(self, console: Console) -> None:
        """Print what only one run has, what differs in shared results, and what is equal."""
        for run, rows in zip(self.runs, self.only, strict=True):
            for row in rows:
                print_line(console, f"only in {run}: {row.setting}")
        for sentence in self.provenance:
            print_line(console, sentence)
        same = (self.matched["differ"] == "") & self.matched["rounds"]
        count = int(same.sum())
        share = f"{count} of {len(same)} shared results"
        if self.equal:
            share = "everything"
        print_line(
            console,
            f"Equal to the last bit: {share} ({counted(count, 'result')}). All columns but times "
            "and provenance were compared, and samples and noise of all rounds.",
        )
        if not same.all():
            title = "change: balanced accuracy of the second run minus the first"
            console.print(frame_table(title, self.matched[~same]))


def compare(runs: tuple[str, str], first: Records, second: Records) -> Comparison:
    """Return the comparison of two runs, whose results are matched by setting and seed.

    Args:
        runs: The names of the two runs.
        first: The results and rounds of the first run.
        second: The results and rounds of the second run.

    Returns:
        The comparison, in which ``matched`` is empty if the runs share no setting and seed.
    """
    first_rows = _keyed(first[0])
    second_rows = _keyed(second[0])
    first_rounds = _fingerprints(first[1])
    second_rounds = _fingerprints(second[1])
    lines = []
    provenance: dict[str, None] = {}
    for key, row in first_rows.items():
        if key not in second_rows:
            continue
        other = second_rows[key]
        differing = [
            name for name in _COMPARED if dump(getattr(row, name)) != dump(getattr(other, name))
        ]
        lines.append(
            {
                "setting": row.setting,
                "change": _change(
                    row.balanced_accuracy,
                    other.balanced_accuracy,
                ),
                "rounds": first_rounds.get(row.cell_id) == second_rounds.get(other.cell_id),
                "differ": ", ".join(differing),
            }
        )
        provenance |= dict.fromkeys(_provenance(row, other))
    only = (
        [row for key, row in first_rows.items() if key not in second_rows],
        [row for key, row in second_rows.items() if key not in first_rows],
    )
    matched = pd.DataFrame(
        lines,
        columns=["setting", "change", "rounds", "differ"],
    )
    return Comparison(
        runs,
        only,
        matched.astype({"rounds": bool}),
        list(provenance),
    )


def compare_folders(first: Path, second: Path) -> Comparison:
    """Return the comparison of two run folders, each with the results of its present grid.

    Raises:
        UserError: A folder has no results, or the folders share no setting and seed.
    """
    records = []
    for folder in (first, second):
        RunFolder(folder).check()
        results = read_results(folder)
        records.append((results.rows, results.rounds()))
    comparison = compare((str(first), str(second)), *records)
    if comparison.matched.empty:
        raise UserError(
            f"{first} and {second}",
            "have no result of the same setting and seed",
            "give two runs of the same grid, or of grids that overlap",
        )
    return comparison


def _change(first: float | None, second: float | None) -> float:
    """Return the second score minus the first one; NaN if one is missing."""
    if first is None or second is None:
        return math.nan
    return second - first


def _keyed(rows: Sequence[Row]) -> dict[str, Row]:
    """Return results by key: the values by which they are matched, as JSON."""
    matched_by = attrgetter(*_MATCHED_BY)
    return {dump([*matched_by(row), row.given_params]): row for row in rows}


def _fingerprints(rounds: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return, for each cell, fingerprints of the samples and of the noise of its rounds.

    Args:
        rounds: The records of rounds, of any cells, in their order.

    Returns:
        By cell id, a list with ``[round, sampled, noise]`` of every round.
    """
    by_cell: dict[str, list[Any]] = {}
    for record in rounds:
        fingerprint = [record.get(name) for name in ("round", "sampled", "noise")]
        by_cell.setdefault(record["cell_id"], []).append(fingerprint)
    return by_cell


def _provenance(first: Row, second: Row) -> Iterator[str]:
    """Yield a sentence for each code hash and version that differs between two results."""
    first_code = _made_by(first)
    second_code = _made_by(second)
    for name in first_code | second_code:
        if first_code.get(name) != second_code.get(name):
            yield (
                f"{name} differs: {first_code.get(name) or 'none'} in the first run, "
                f"{second_code.get(name) or 'none'} in the second"
            )


def _made_by(row: Row) -> dict[str, str | None]:
    """Return the code hashes and versions that made a result, by their words."""
    code = {words.format(row.algorithm): getattr(row, name) for name, words in _PROVENANCE.items()}
    return {**code, **row.versions}
