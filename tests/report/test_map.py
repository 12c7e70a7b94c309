from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from rows import make_row

from fedsim.data.embeddings import Embeddings
from fedsim.data.sources.load import load
from fedsim.data.spec import DatasetSpec
from fedsim.evaluation.evaluators import Labelled
from fedsim.report.map import POINTS, draw_map, shown_rows
from fedsim.report.panels import SERIES

INF = float("inf")


@pytest.mark.parametrize(
    ("epsilons", "shown"), [((1.0, 8.0, INF), 8.0), ((INF,), INF), ((None,), None)]
)
def test_map_shows_methods_at_their_largest_finite_epsilon(
    epsilons: tuple[float, ...], shown: float | None
) -> None:
    rows = [
        make_row(cell_id=f"{seed}{epsilon}", seed=seed, epsilon_target=epsilon)
        for seed in (3, 4)
        for epsilon in epsilons
    ]
    rows.append(
        make_row(
            cell_id="classifier",
            label="dp-linear",
            yields="classifier",
            seed=3,
        )
    )
    assert [(row.epsilon_target, row.seed) for row in shown_rows(rows)] == [(shown, 3)]


def places(figure: Figure, panel: int) -> list[Any]:
    drawn = [each for each in figure.axes[panel].get_children() if isinstance(each, PathCollection)]
    return [np.asarray(each.get_offsets()) for each in drawn]


def test_map_axes_depend_on_synthetic_data_alone() -> None:
    digits = load(DatasetSpec(name="digits"))
    generator = np.random.default_rng(0)
    panels = {
        name: Labelled(
            generator.normal(size=(40, 64)).astype(np.float32),
            np.repeat([0, 1], 20),
        )
        for name in ("a", "b")
    }
    figure = draw_map(panels, digits)
    other = draw_map(panels, replace(digits, x_test=digits.x_test[::-1]))
    assert [axis.get_title(loc="left") for axis in figure.axes[:2]] == ["a", "b"]
    for panel in (0, 1):
        real = places(figure, panel)[::2]
        made = places(figure, panel)[1::2]
        assert (len(real), max(map(len, real)), [len(each) for each in made]) == (
            len(SERIES),
            POINTS,
            [20, 20] + [0] * 8,
        )
        assert all(
            np.array_equal(one, two)
            for one, two in zip(made, places(other, panel)[1::2], strict=True)
        )
        assert not all(
            np.array_equal(one, two)
            for one, two in zip(real, places(other, panel)[::2], strict=True)
        )


def test_map_of_many_classes_names_as_many_as_there_are_colours() -> None:
    classes = 1000
    generator = np.random.default_rng(0)
    y = np.arange(3 * classes) % classes
    x = generator.normal(size=(len(y), 4)).astype(np.float32)
    figure = draw_map({"a": Labelled(x, y)}, Embeddings("many", x, y, x, y, classes))
    assert len(figure.legends[0].get_texts()) == 2 + len(SERIES)
