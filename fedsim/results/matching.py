"""Two runs of the same settings and seeds, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from fedsim.json_lines import dump
from fedsim.results.rows import Row

SETTING = ("label", "dataset", "scheme", "alpha", "clients", "unseen", "epsilon_target", "delta", "unit", "trust")
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
class Run:
    """Rows of one run folder, one a cell, and all its round records."""

    rows: Sequence[Row]
    rounds: Sequence[Mapping[str, Any]]

    @cached_property
    def settings(self) -> dict[Key, dict[int | None, Row]]:
        """Rows by seed, by setting; settings in the order of their first row."""
        found: dict[Key, dict[int | None, Row]] = {}
        for row in self.rows:
            found.setdefault((*(getattr(row, name) for name in SETTING), dump(row.params)), {})[row.seed] = row
        return found

    @cached_property
    def fingerprints(self) -> dict[str, list[tuple[Any, ...]]]:
        """Round and fingerprints of every round that has them, by cell."""
        found: dict[str, list[tuple[Any, ...]]] = {}
        for record in self.rounds:
            if any(name in record for name in FINGERPRINTS):
                found.setdefault(record["cell_id"], []).append((record["round"], *(record.get(name) for name in FINGERPRINTS)))
        return found


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
        return not any(self.only) and not self.provenance and all(each.equal for each in self.matched)


def compare(first: Run, second: Run) -> Comparison:
    """Match the rows of two runs by setting and seed; ``matched`` is empty where they share none."""
    pairs = {
        key: [(row, second.settings[key][seed]) for seed, row in by_seed.items() if seed in second.settings.get(key, {})]
        for key, by_seed in first.settings.items()
    }
    shared = [pair for each in pairs.values() for pair in each]
    return Comparison(
        only=(_lacking(first, second), _lacking(second, first)),
        matched=[_matched(each, first, second) for each in pairs.values() if each],
        provenance=_provenance(shared),
    )


def _lacking(run: Run, other: Run) -> list[Row]:
    settings = run.settings.items()
    return [row for key, by_seed in settings for seed, row in by_seed.items() if seed not in other.settings.get(key, {})]


def _matched(pairs: Sequence[tuple[Row, Row]], first: Run, second: Run) -> Matched:
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
    found = dict.fromkeys((f"source of {a.algorithm}", a.source or "none", b.source or "none") for a, b in pairs)
    found |= dict.fromkeys(("code that judged", a.judged or "none", b.judged or "none") for a, b in pairs)
    found |= dict.fromkeys(("code that counted ε", a.counted_by or "none", b.counted_by or "none") for a, b in pairs)
    found |= dict.fromkeys(
        (name, a.versions.get(name, "none"), b.versions.get(name, "none")) for a, b in pairs for name in {**a.versions, **b.versions}
    )
    return [(name, a, b) for name, a, b in found if a != b]
