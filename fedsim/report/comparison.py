"""Two runs of the same settings and seeds, row by row, and what a terminal shows of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsim.errors import UserError
from fedsim.json_lines import dump
from fedsim.results.folder import RunFolder
from fedsim.results.grid_rows import grid_rounds, grid_rows
from fedsim.results.groups import distinct_labels
from fedsim.results.rows import Row
from fedsim.words import Printed, counted, setting

MATCHED_BY = ("label", "dataset", "scheme", "alpha", "clients", "unseen", "epsilon_target", "delta", "unit", "trust")
"""What rows are matched by, beside parameters and seed."""
_PROVENANCE = ("cell_id", "source", "judged", "versions", "counted_by")
"""Fields that say what code made a row; a cell's id is a hash of it, too."""
_CLOCK = ("seconds", "train_seconds", "judge_seconds")
_SAVED = "generator"
"""A hash of a file that tells versions, too."""
FINGERPRINTS = ("sampled", "noise")
"""Fields of a round record that say which rows were sampled and which noise was added."""

Key = tuple[Any, ...]


@dataclass(frozen=True)
class RunRecords:
    """Rows of one run folder, one a cell, and all its round records."""

    rows: Sequence[Row]
    rounds: Sequence[Mapping[str, Any]]

    @cached_property
    def settings(self) -> dict[Key, dict[int | None, Row]]:
        """Rows by seed, by setting; settings in the order of their first row."""
        by_setting: dict[Key, dict[int | None, Row]] = {}
        for row in self.rows:
            by_setting.setdefault((*(getattr(row, name) for name in MATCHED_BY), dump(row.given_params)), {})[row.seed] = row
        return by_setting

    @cached_property
    def fingerprints(self) -> dict[str, list[tuple[Any, ...]]]:
        """Round and fingerprints of every round that has them, by cell."""
        by_cell: dict[str, list[tuple[Any, ...]]] = {}
        for record in self.rounds:
            if any(name in record for name in FINGERPRINTS):
                by_cell.setdefault(record["cell_id"], []).append((record["round"], *(record.get(name) for name in FINGERPRINTS)))
        return by_cell


@dataclass(frozen=True)
class Matched:
    """One setting that both runs have, over the seeds that both have.

    Attributes:
        example: a row of it.
        seeds: how many seeds both have.
        mean: mean over the seeds of the second run's balanced accuracy minus the first's; None where no seed has both.
        largest: the largest absolute one.
        same_rounds: whether every round sampled the same rows and added the same noise; None where no record of either says so.
        fields: names of the rows' fields that differ, without provenance, saved generators and wall time.
    """

    example: Row
    seeds: int
    mean: float | None
    largest: float | None
    same_rounds: bool | None
    fields: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether rows and rounds are the same to the last bit."""
        return not self.fields and self.same_rounds is not False


@dataclass(frozen=True)
class Comparison:
    """What two runs have in common and what not.

    Attributes:
        only: of the first and of the second run, the rows of settings and seeds that the other lacks.
        matched: the shared settings, in the first run's order.
        provenance: what made the shared rows where that differs: its name, the first run's value, the second's.
    """

    only: tuple[list[Row], list[Row]]
    matched: list[Matched]
    provenance: list[tuple[str, str, str]]

    @property
    def equal(self) -> bool:
        """Whether nothing differs but identifiers of cells, what is saved of a generator, and wall time."""
        return not any(self.only) and not self.provenance and all(setting.equal for setting in self.matched)


def compare(first: RunRecords, second: RunRecords) -> Comparison:
    """Match the rows of two runs by setting and seed; ``matched`` is empty where they share none."""
    pairs = {
        key: [(row, second.settings[key][seed]) for seed, row in by_seed.items() if seed in second.settings.get(key, {})]
        for key, by_seed in first.settings.items()
    }
    shared = [pair for members in pairs.values() for pair in members]
    return Comparison(
        only=(_lacking(first, second), _lacking(second, first)),
        matched=[_matched(members, first, second) for members in pairs.values() if members],
        provenance=_provenance(shared),
    )


def _lacking(run: RunRecords, other: RunRecords) -> list[Row]:
    settings = run.settings.items()
    return [row for key, by_seed in settings for seed, row in by_seed.items() if seed not in other.settings.get(key, {})]


def _matched(pairs: Sequence[tuple[Row, Row]], first: RunRecords, second: RunRecords) -> Matched:
    scores = [(a.balanced_accuracy, b.balanced_accuracy) for a, b in pairs]
    changes = [b - a for a, b in scores if a is not None and b is not None]
    rounds = [(first.fingerprints.get(a.cell_id, []), second.fingerprints.get(b.cell_id, [])) for a, b in pairs]
    return Matched(
        example=pairs[0][0],
        seeds=len(pairs),
        mean=fmean(changes) if changes else None,
        largest=max(map(abs, changes), default=None),
        same_rounds=all(a == b for a, b in rounds) if any(a or b for a, b in rounds) else None,
        fields=tuple(dict.fromkeys(name for a, b in pairs for name in _differing(a, b))),
    )


def _differing(first: Row, second: Row) -> list[str]:
    a, b = first.model_dump(), second.model_dump()
    return [name for name in a if name not in (*_PROVENANCE, *_CLOCK, _SAVED) and dump(a[name]) != dump(b[name])]


def _provenance(pairs: Sequence[tuple[Row, Row]]) -> list[tuple[str, str, str]]:
    """Sources by algorithm, other code and versions by package, where the two runs have other ones."""
    code = dict.fromkeys((f"source of {a.algorithm}", a.source or "none", b.source or "none") for a, b in pairs)
    code |= dict.fromkeys(("code that judged", a.judged or "none", b.judged or "none") for a, b in pairs)
    code |= dict.fromkeys(("code that counted ε", a.counted_by or "none", b.counted_by or "none") for a, b in pairs)
    code |= dict.fromkeys(
        (name, a.versions.get(name, "none"), b.versions.get(name, "none")) for a, b in pairs for name in {**a.versions, **b.versions}
    )
    return [(name, a, b) for name, a, b in code if a != b]


_HEADS = ("setting", "seeds", "mean change", "largest", "samples and noise", "fields that differ")
_ROUNDS = {True: "equal", False: "differ", None: ""}


@dataclass(frozen=True, repr=False)
class ComparedFolders(Printed):
    """Two run folders and what their rows have in common."""

    folders: tuple[Path, Path]
    comparison: Comparison

    def show(self, console: Console) -> None:
        """Print what is only in one, what differs of settings that both have, and what is equal."""
        for line in self._lines():
            console.print(Text(line), soft_wrap=True)
        differing = [shared for shared in self.comparison.matched if not shared.equal]
        if differing:
            console.print(_table(differing))

    def _lines(self) -> Iterator[str]:
        for folder, rows in zip(self.folders, self.comparison.only, strict=True):
            yield from (f"only in {folder}: {words}" for words in _seeds_by_setting(rows))
        yield from (f"{name}: {first} → {second}" for name, first, second in self.comparison.provenance)
        if any(shared.equal for shared in self.comparison.matched):
            yield from _equal(self.comparison)


def compare_folders(first: Path, second: Path) -> ComparedFolders:
    """Match the rows of two run folders, those of their grids, by setting and seed.

    Raises:
        UserError: one is not a run folder or cannot be read, or they share no setting and seed.
    """
    for folder in (first, second):
        RunFolder(folder).check()
    rows = [grid_rows(folder) for folder in (first, second)]
    together = [row for own in rows for row in own]
    # one label for one set of parameters, so that words tell settings apart
    named = distinct_labels(together, [dump(row.given_params) for row in together])
    runs = (RunRecords(named[: len(rows[0])], grid_rounds(first)), RunRecords(named[len(rows[0]) :], grid_rounds(second)))
    comparison = compare(*runs)
    if not comparison.matched:
        raise UserError(f"{first} and {second}", "no setting and seed is in both", "give two runs of one grid, or of grids that overlap")
    return ComparedFolders((first, second), comparison)


def _equal(comparison: Comparison) -> Iterator[str]:
    """How much is equal, and in what."""
    equal = [shared for shared in comparison.matched if shared.equal]
    count = sum(shared.seeds for shared in equal)
    rows = counted(count, "row")
    if comparison.equal:
        yield f"equal to the last bit: everything ({rows}), all fields but wall time and the hash of a saved generator"
    else:
        yield f"equal to the last bit: {len(equal)} of {len(comparison.matched)} shared settings ({rows}), scores and budgets"
    without = sum(shared.same_rounds is None for shared in equal)
    missing = f"; {without} have none" if without else ""
    yield f"the rounds' fingerprints of samples and noise: equal in {len(equal) - without} of these {len(equal)} settings{missing}"


def _table(matched: Sequence[Matched]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in _HEADS:
        shown.add_column(head, justify="right" if head in ("seeds", "mean change", "largest") else "left")
    for shared in matched:
        mean = "" if shared.mean is None else f"{shared.mean:+.3g}"
        largest = "" if shared.largest is None else f"{shared.largest:.3g}"
        texts = (_words(shared.example), str(shared.seeds), mean, largest, _ROUNDS[shared.same_rounds], ", ".join(shared.fields))
        shown.add_row(*map(Text, texts))
    shown.caption = Text("change: of balanced accuracy, second run minus first, over shared seeds; largest: the largest absolute one")
    return shown


def _seeds_by_setting(rows: Sequence[Row]) -> list[str]:
    by_setting: dict[str, list[str]] = {}
    for row in rows:
        by_setting.setdefault(_words(row), []).append(str(row.seed))
    return [f"{words} · {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)}" for words, seeds in by_setting.items()]


def _words(row: Row) -> str:
    return setting(row.label, row.dataset, row.scheme, alpha=row.alpha, clients=row.clients, epsilon=row.epsilon_target)
