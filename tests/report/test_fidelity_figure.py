import pytest
from fedsim.report.fidelity import draw_fidelity
from fedsim.results.groups import group_seeds

from fedsim.report.figures import save_figure

FIDELITY = {"frechet_distance": 0.1, "squared_mmd": 0.02, "density": 0.9, "coverage": 0.8, "real_or_synthetic": 0.7}


def told(row, label: str, epsilon: float | None, **fields: object):
    spent = {} if epsilon is None else {"epsilon_spent": epsilon * 0.99}
    cell = f"{label} {epsilon} {sorted(fields.items())}"
    return row(cell_id=cell, label=label, algorithm=label, epsilon_target=epsilon, **spent, **fields)


def lines_of(axes) -> list[list[float]]:
    """The heights of the methods' lines."""
    return [list(line.get_ydata()) for line in axes.get_lines() if line.get_marker() not in ("None", "")]


def test_every_number_is_a_panel_and_every_place_a_row_of_them(row):
    rows = [told(row, "a", e, dataset=d, **FIDELITY | {"coverage": e / 10}) for e in (1.0, 8.0) for d in ("blood", "organ")]
    figure = draw_fidelity(group_seeds(rows))
    assert figure is not None
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert len(titles) == 10
    assert titles[0].startswith("blood\nFréchet distance")
    assert titles[5].startswith("organ\nFréchet distance")
    assert [0.1, 0.8] in lines_of(figure.axes[3])


@pytest.mark.parametrize("place", [{"scheme": ("dirichlet", "shards")}, {"alpha": (0.1, 1.0)}, {"clients": (4, 10)}], ids=str)
def test_points_of_another_place_are_in_a_panel_of_their_own(row, place):
    ((field, values),) = place.items()
    figure = draw_fidelity(group_seeds([told(row, "a", 1.0, coverage=n / 10, **{field: value}) for n, value in enumerate(values)]))
    assert figure is not None
    assert [lines_of(axes)[:1] for axes in figure.axes if axes.get_title(loc="left")] == [[[0.0]], [[0.1]]]


def test_a_method_without_synthetic_rows_is_left_out(row, tmp_path):
    rows = [told(row, "classifier", 1.0), told(row, "generator", 1.0, **FIDELITY)]
    figure = draw_fidelity(group_seeds(rows))
    assert figure is not None
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["generator"]
    assert [path.name for path in save_figure(figure, tmp_path, "fidelity")] == ["fidelity.png", "fidelity.svg"]


def test_without_any_of_the_numbers_there_is_no_figure_and_a_panel_only_for_those_there_are(row):
    assert draw_fidelity(group_seeds([told(row, "a", 1.0)])) is None
    figure = draw_fidelity(group_seeds([told(row, "a", 1.0, coverage=0.5)]))
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["coverage (higher is better)"]
