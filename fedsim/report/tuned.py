"""What tuned cells chose: the parameters of the best training, by method and budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fedsim.report.tables import Line, ResultsTable, TableBlock, by_place, epsilon_heads, epsilons
from fedsim.results.groups import Group, grouped
from fedsim.words import number, spelled

_TITLE = "Chosen parameters, and how many trainings there were"
_NOTE = "the number of trainings is not private, and no part of what may be released; an ε that is paid for is of all of them together"


def tuned_tables(groups: Sequence[Group]) -> list[ResultsTable]:
    """The table of all tuned methods; empty where there is none."""
    tuned = [group for group in groups if any(row.tuning for row in group.rows)]
    if not tuned:
        return []
    common, members = by_place(tuned)
    columns = epsilons(tuned)
    blocks = []
    for place, block in members.items():
        lines = []
        for label, own in grouped(block, lambda group: group.label).items():
            chosen = {group.epsilon_target: _chosen(group) for group in own}
            lines.append(Line(label, "", tuple(chosen.get(column, "") for column in columns)))
        blocks.append(TableBlock(place, (), tuple(lines)))
    return [ResultsTable(" · ".join((_TITLE, *common)), epsilon_heads(columns), tuple(blocks), (_NOTE,), ("method",), "chosen")]


def _chosen(group: Group) -> str:
    """Every choice with how many seeds made it where there are several, and the trainings of each seed."""
    made = [row.tuning for row in group.rows if row.tuning]
    choices = Counter(", ".join(f"{name} {spelled(value)}" for name, value in tuning.chosen.items()) for tuning in made)
    said = "; ".join(choice if len(made) == 1 else f"{choice} ({count})" for choice, count in choices.most_common())
    return f"{said}: {', '.join(number(tuning.trained) for tuning in made)}"
