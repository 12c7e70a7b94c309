"""Two runs of the same settings and seeds, row by row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
"""What rows are matched by, beside parameters."""
_PROVENANCE = {
    "source": "source of {}",
    "judged": "code that judged",
    "counted_by": "code that counted ε",
}
_CLOCK = ("seconds", "train_seconds", "judge_seconds")
_COMPARED = [
    name
    for name in COLUMNS
    if name not in (*_CLOCK, *_PROVENANCE, "cell_id", "versions", "generator")
]
Records = tuple[Sequence[Row], Sequence[Mapping[str, Any]]]
"""Rows, and the round records of their cells, maybe of more."""


@dataclass(frozen=True, repr=False)
class Comparison(Printed):
    """What two runs have in common and what not.

    Attributes:
        runs: what they are called.
        only: of the first and of the second run, the rows of settings and seeds that the other
            lacks.
        matched: a line a row that both have: ``setting``, ``change`` (of balanced accuracy, second
            run minus first), ``rounds`` (whether samples and noise are equal), ``differ`` (columns,
            without clock and provenance).
        provenance: what made the shared rows where that differs, in words.
    """

    runs: tuple[str, str]
    only: tuple[Sequence[Row], Sequence[Row]]
    matched: pd.DataFrame
    provenance: Sequence[str]

    @property
    def rows_equal(self) -> bool:
        """Whether all shared rows and their rounds are the same to the last bit."""
        return bool(self.matched["rounds"].all() and not self.matched["differ"].any())

    @property
    def equal(self) -> bool:
        """Whether nothing differs but identifiers of cells, what is saved of a generator, and wall
        time.
        """
        return self.rows_equal and not any(self.only) and not self.provenance

    def show(self, console: Console) -> None:
        """Print what is only in one, what differs of rows that both have, and what is equal."""
        only = [
            f"only in {name}: {row.setting}"
            for name, rows in zip(self.runs, self.only, strict=True)
            for row in rows
        ]
        same = (self.matched["differ"] == "") & self.matched["rounds"]
        if self.equal:
            what = "everything"
        else:
            what = f"{same.sum()} of {len(same)} shared rows"
        said = (
            f"{what} ({counted(int(same.sum()), 'row')}), all but clock and provenance, and "
            "samples and noise of rounds"
        )
        for line in (*only, *self.provenance, f"equal to the last bit: {said}"):
            print_line(console, line)
        if not same.all():
            console.print(
                frame_table(
                    "change: of balanced accuracy, second run minus first", self.matched[~same]
                )
            )


def compare(runs: tuple[str, str], first: Records, second: Records) -> Comparison:
    """Match the rows of two runs by setting and seed; ``matched`` is empty where they share
    none.
    """
    one = _keyed(first[0])
    other = _keyed(second[0])
    shared = [(row, other[key]) for key, row in one.items() if key in other]
    rounds = [_fingerprints(first[1]), _fingerprints(second[1])]
    matched = [
        {
            "setting": a.setting,
            "change": math.nan
            if None in (a.balanced_accuracy, b.balanced_accuracy)
            else b.balanced_accuracy - a.balanced_accuracy,
            "rounds": rounds[0].get(a.cell_id) == rounds[1].get(b.cell_id),
            "differ": ", ".join(
                name for name in _COMPARED if dump(getattr(a, name)) != dump(getattr(b, name))
            ),
        }
        for a, b in shared
    ]
    only = (
        [row for key, row in one.items() if key not in other],
        [row for key, row in other.items() if key not in one],
    )
    frame = pd.DataFrame(matched, columns=["setting", "change", "rounds", "differ"]).astype(
        {"rounds": bool}
    )
    return Comparison(
        runs,
        only,
        frame,
        list(dict.fromkeys(line for pair in shared for line in _provenance(*pair))),
    )


def compare_folders(first: Path, second: Path) -> Comparison:
    """Match the rows of two run folders, those of their grids, by setting and seed."""
    runs = []
    for folder in (first, second):
        RunFolder(folder).check()
        results = read_results(folder)
        runs.append((results.rows, results.rounds()))
    found = compare((str(first), str(second)), runs[0], runs[1])
    if not len(found.matched):
        raise UserError(
            f"{first} and {second}",
            "no setting and seed is in both",
            "give two runs of one grid, or of grids that overlap",
        )
    return found


def _keyed(rows: Sequence[Row]) -> dict[str, Row]:
    return {
        dump([*(getattr(row, name) for name in _MATCHED_BY), row.given_params]): row for row in rows
    }


def _fingerprints(rounds: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """By cell, which rows its rounds sampled, and which noise was added."""
    by_cell: dict[str, list[Any]] = {}
    for record in rounds:
        by_cell.setdefault(record["cell_id"], []).append(
            [record.get(name) for name in ("round", "sampled", "noise")]
        )
    return by_cell


def _provenance(first: Row, second: Row) -> Iterator[str]:
    facts = {
        words.format(first.algorithm): (getattr(first, name), getattr(second, name))
        for name, words in _PROVENANCE.items()
    }
    facts |= {
        name: (first.versions.get(name), second.versions.get(name))
        for name in {**first.versions, **second.versions}
    }
    yield from (
        f"{name}: {a or 'none'} → {b or 'none'}" for name, (a, b) in facts.items() if a != b
    )
