"""What a terminal shows of two run folders, one against the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsim.errors import UserError
from fedsim.json_lines import dump
from fedsim.results.folder import RunFolder
from fedsim.results.grid_rows import grid_rounds, grid_rows
from fedsim.results.groups import distinct_labels
from fedsim.results.matching import Comparison, Matched, Run, compare
from fedsim.results.rows import Row
from fedsim.words import counted, setting

_HEADS = ("setting", "seeds", "mean change", "largest", "samples and noise", "fields that differ")
_ROUNDS = {True: "equal", False: "differ", None: ""}


@dataclass(frozen=True)
class Compared:
    """Two run folders and what their rows have in common."""

    folders: tuple[Path, Path]
    comparison: Comparison

    def show(self, console: Console) -> None:
        """Print what is only in one, what differs of shared settings, and what is equal."""
        for line in self._lines():
            console.print(Text(line), soft_wrap=True)
        differing = [each for each in self.comparison.matched if not each.equal]
        if differing:
            console.print(_table(differing))

    def _lines(self) -> Iterator[str]:
        for folder, rows in zip(self.folders, self.comparison.only, strict=True):
            yield from (f"only in {folder}: {told}" for told in _seeds_by_setting(rows))
        yield from (f"{name}: {first} → {second}" for name, first, second in self.comparison.provenance)
        if any(each.equal for each in self.comparison.matched):
            yield from _equal(self.comparison)


def compare_folders(first: Path, second: Path) -> Compared:
    """Match the rows of two run folders, those of their grids, by setting and seed.

    Raises:
        UserError: one is not a run folder or cannot be read, or they share no setting and seed.
    """
    for folder in (first, second):
        RunFolder(folder).check()
    rows = [grid_rows(folder) for folder in (first, second)]
    together = [row for each in rows for row in each]
    # one label for one set of parameters, so that words tell settings apart
    named = distinct_labels(together, [dump(row.params) for row in together])
    runs = (Run(named[: len(rows[0])], grid_rounds(first)), Run(named[len(rows[0]) :], grid_rounds(second)))
    comparison = compare(*runs)
    if not comparison.matched:
        raise UserError(f"{first} and {second}", "no setting and seed is in both", "give two runs of one grid, or of grids that overlap")
    return Compared((first, second), comparison)


def _equal(comparison: Comparison) -> Iterator[str]:
    """How much is equal, and in what."""
    equal = [each for each in comparison.matched if each.equal]
    count = sum(each.seeds for each in equal)
    rows = counted(count, "row")
    if comparison.equal:
        yield f"equal to the last bit: everything ({rows}), all fields but wall time and the hash of a saved generator"
    else:
        yield f"equal to the last bit: {len(equal)} of {len(comparison.matched)} shared settings ({rows}), scores and budgets"
    untold = sum(each.same_rounds is None for each in equal)
    missing = f"; {untold} have none" if untold else ""
    yield f"the rounds' fingerprints of samples and noise: equal in {len(equal) - untold} of these {len(equal)} settings{missing}"


def _table(matched: Sequence[Matched]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in _HEADS:
        shown.add_column(head, justify="right" if head in ("seeds", "mean change", "largest") else "left")
    for each in matched:
        mean = "" if each.mean is None else f"{each.mean:+.3g}"
        largest = "" if each.largest is None else f"{each.largest:.3g}"
        texts = (_words(each.example), str(each.seeds), mean, largest, _ROUNDS[each.same_rounds], ", ".join(each.fields))
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
