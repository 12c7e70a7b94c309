"""Published numbers beside the results of a run: their lines in tables and curves.

They were not run here. Only the table and the curve of their measure show them, under a name that
says so. No mean, test, rank, board or claim includes one, because all of these read results.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from fedsim.grid.models import Published
from fedsim.results.stats import PLACE
from fedsim.words import number

NOTE = (
    "Published, not run here: the number as its source states it. Data split, partition and "
    "evaluation may differ, so it is in no test and never bold."
)
"""The note below a table that explains published numbers."""


def published_lines(
    published: Sequence[Published], measure: str, lines: pd.DataFrame
) -> pd.DataFrame:
    """Return one line per published number of a measure and place that it belongs to.

    Args:
        published: The published numbers.
        measure: The name of the measure.
        lines: The lines of methods, from which the places are taken: the columns :data:`PLACE`
            and, if there is one, ``where``.

    Returns:
        The places with ``label`` and ``method`` (the number's name), ``epsilon_target``, ``mean``
        (the number) and ``text``. It is empty without such a number.
    """
    places = lines.drop_duplicates(PLACE).filter([*PLACE, "where"])
    frames = [
        places[places["dataset"].map(entry.belongs_to)].assign(
            label=entry.display,
            method=entry.display,
            epsilon_target=entry.epsilon,
            mean=entry.published,
            text=number(entry.published),
        )
        for entry in published
        if entry.measure == measure
    ]
    if not frames:
        return places.head(0)
    return pd.concat(frames)
