"""The summary of a run folder: a line for every group of seeds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from fedsim.evaluation.measures import MEASURES
from fedsim.files import replaced
from fedsim.results.groups import SETTING, Group
from fedsim.results.rows import UNDRAWN


def write_summary(groups: Iterable[Group], path: Path) -> None:
    """Write ``summary.csv``: a line for every group of seeds, replacing the file at once.

    Columns: the setting, ``seeds`` (rows averaged), ``failed``, ``overspent``, ``unaccounted`` and ``refuted`` (rows left out), of each
    measure ``_mean`` and ``_ci95`` half-width, the largest ``epsilon_spent``, and the means of the
    references and seconds. Infinity is ``inf``; the half-width of a single seed is empty. A text that a spreadsheet would take for a
    formula begins with an apostrophe.
    """
    lines = [{name: inert(value) for name, value in _summary_line(group).items()} for group in groups]
    frame = pd.DataFrame(lines, columns=_columns())
    with replaced(path) as part:
        frame.to_csv(part, index=False)


def inert(value: Any) -> Any:
    """A text as a spreadsheet shows it; a carriage return, which would end its line, is a blank."""
    if not isinstance(value, str):
        return value
    return ("'" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else "") + value.replace("\r", " ")


_MEANS = ("ceiling_balanced_accuracy", "ceiling_accuracy", "local_only_balanced_accuracy", "chance", "seconds")


def _measures() -> list[str]:
    return [name for name, measure in MEASURES.items() if measure.summary]


def _columns() -> list[str]:
    return [
        *(*SETTING, "scope", "claim", "seeds", *UNDRAWN),
        *(f"{measure}_{part}" for measure in _measures() for part in ("mean", "ci95")),
        *("epsilon_spent_max", *_MEANS),
    ]


def _summary_line(group: Group) -> dict[str, Any]:
    line = {name: getattr(group, name) for name in (*SETTING, "scope", "claim", *UNDRAWN)}
    line["seeds"] = len(group.rows)
    for measure in _measures():
        interval = group.interval(measure)
        line[f"{measure}_mean"] = interval.mean if interval else None
        line[f"{measure}_ci95"] = interval.half_width if interval else None
    return line | {"epsilon_spent_max": group.largest("epsilon_spent")} | {name: group.mean(name) for name in _MEANS}
