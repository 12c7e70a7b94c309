import pytest

from fedsim.report.fidelity import draw_fidelity
from fedsim.report.figures import save_figure
from fedsim.results.groups import group_seeds

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


def test_a_method_without_synthetic_rows_is_left_out_and_the_others_keep_their_colours(row, tmp_path):
    rows = [told(row, "classifier", 1.0), told(row, "generator", 1.0, **FIDELITY)]
    figure = draw_fidelity(group_seeds(rows))
    assert figure is not None
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["generator"]
    assert legend.get_lines()[0].get_color() == "#d55e00"
    assert [path.name for path in save_figure(figure, tmp_path, "fidelity")] == ["fidelity.png", "fidelity.svg"]


def test_without_any_of_the_numbers_there_is_no_figure_and_a_panel_only_for_those_there_are(row):
    assert draw_fidelity(group_seeds([told(row, "a", 1.0)])) is None
    figure = draw_fidelity(group_seeds([told(row, "a", 1.0, coverage=0.5)]))
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["coverage (higher is better)"]


def frechet_panel(rows):
    figure = draw_fidelity(group_seeds(rows))
    assert figure is not None
    return figure.axes[0]


def test_good_methods_are_told_apart_beside_one_that_is_far_worse(row):
    good = [told(row, label, 1.0, frechet_distance=value) for label, value in (("a", 0.1), ("b", 0.3))]
    axes = frechet_panel([*good, told(row, "bad", 1.0, frechet_distance=906.0)])
    low, high = axes.transAxes.inverted().transform(axes.transData.transform([(0, 0.1), (0, 0.3)]))[:, 1]
    assert high - low > 0.05
    assert {0.0, 100.0} <= set(axes.get_yticks())
    assert frechet_panel(good).get_yscale() == "linear"


def test_axes_end_where_the_numbers_do_however_long_bars_are(row):
    ends = {"frechet_distance": (1000.0, 30_000.0), "coverage": (0.1, 0.9), "real_or_synthetic": (0.5, 1.0)}
    rows = [told(row, "bad", 1.0, seed=seed, **{name: values[seed] for name, values in ends.items()}) for seed in (0, 1)]
    figure = draw_fidelity(group_seeds([*rows, told(row, "good", 1.0, **FIDELITY)]))
    assert figure is not None
    frechet, _, _, coverage, told_apart = (axes.get_ylim() for axes in figure.axes)
    assert -0.1 < frechet[0] < 0
    for low, high in (coverage, told_apart):
        assert low > -0.1
        assert high < 1.1


def test_a_squared_mmd_below_0_is_seen(row):
    axes = frechet_panel([told(row, "a", epsilon, squared_mmd=value) for epsilon, value in ((1.0, 0.001), (8.0, -0.02))])
    assert axes.get_ylim()[0] < -0.02


def test_a_place_without_a_number_has_an_empty_panel(row):
    rows = [told(row, "a", 1.0, dataset="blood", **FIDELITY), told(row, "a", 1.0, dataset="organ", coverage=0.5)]
    figure = draw_fidelity(group_seeds(rows))
    assert figure is not None
    assert [len(line) for line in lines_of(figure.axes[5])] == [0, 0]
