"""Pictures: frames are tested as frames, and that every figure is drawn with what a reader needs."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from rows import changed

from fedsim.errors import UserError
from fedsim.report.figures import (
    communication,
    epsilon_axis,
    fidelity,
    inches,
    looks,
    over_parameter,
    save_figure,
    save_pdf,
    sites,
    utility,
)
from fedsim.report.rounds import NOT_PRIVATE, diagnostics, round_frame
from fedsim.results.stats import Settings


def shown(figure):
    """The panels that are drawn."""
    assert figure is not None
    return [axes for axes in figure.axes if axes.axison]


def titles(figure):
    return [axes.get_title(loc="left") for axes in shown(figure)]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def line(axes, *points):
    """Whether a line is drawn through these points."""
    wanted = np.array(points, dtype=float)
    return any(drawn.get_xydata().shape == wanted.shape and np.allclose(drawn.get_xydata(), wanted) for drawn in axes.lines)


def test_the_curves_are_means_over_epsilon_a_panel_an_alpha_with_levels_to_expect(quickstart):
    settings = Settings.of(quickstart)
    figure = utility(settings)
    assert titles(figure) == ["α = 0.1", "α = 1"]
    assert legend(figure) == ["fedhypevae", "weight-noise", "fedavg-cvae (not private)", "ceiling", "local-only", "chance"]
    means = settings.facts.join(settings.mean("balanced_accuracy")).query("label == 'fedhypevae' and alpha == 0.1")["balanced_accuracy"]
    at, ticks = epsilon_axis(settings.facts["epsilon_target"])
    assert [*ticks.values()] == ["1", "4", "∞"]
    assert line(shown(figure)[0], *zip(at.values(), means, strict=True))
    levels = {round(drawn.get_ydata()[0], 3) for drawn in shown(figure)[1].lines if len(set(drawn.get_ydata())) == 1}
    assert {0.953, 0.71, 0.1} <= levels
    assert "95 % confidence interval over 3 seeds" in " ".join(figure.legends[0].get_title().get_text().split())


def test_infinity_stands_a_gap_behind_the_largest_epsilon():
    at, ticks = epsilon_axis(pd.Series([math.inf, 1.0, 10.0, math.nan]))
    assert (at[1.0], at[10.0]) == (0.0, 1.0)
    assert at[math.inf] > 1.3
    assert [*ticks.values()] == ["1", "10", "∞"]


def test_a_claim_that_is_no_theorem_is_dashed_and_one_that_a_check_refuted_too(row):
    rows = [row(cell_id=claim, label=claim, claim=claim) for claim in ("proved", "stated", "heuristic")]
    found = looks(Settings.of([*rows, row(cell_id="f", label="found", check="failed")]).facts)
    styles = {label: look.style["linestyle"] for label, look in found.items()}
    assert styles["proved"] == "-"
    assert styles["stated"] == styles["heuristic"] == styles["found"] != "-"
    assert len({look.style["color"] for look in found.values()}) == 4


def test_an_audited_bound_has_a_tick_and_bars_end_where_the_measure_does(row):
    scores = (0.6, 0.99, 1.0)
    rows = [row(cell_id=f"{seed}", seed=seed, balanced_accuracy=score, audit_epsilon_lower=0.5) for seed, score in enumerate(scores)]
    (axes,) = shown(utility(Settings.of(rows)))
    assert line(axes, (math.log10(0.5), np.mean(scores)))
    ends = [segment[:, 1].max() for collection in axes.collections for segment in collection.get_segments()]
    assert max(ends) == 1.0


def test_nothing_to_draw_is_no_figure(row, failed):
    settings = Settings.of([failed()])
    assert [utility(settings), fidelity(settings), communication(settings), sites(settings, pd.DataFrame())] == [None] * 4
    assert diagnostics(settings, round_frame(settings, [])) is None
    assert fidelity(Settings.of([row()])) is None
    assert communication(Settings.of([row()])) is None


def test_fidelity_has_a_panel_a_number_and_a_line_of_panels_a_place(row):
    scores = {"frechet_distance": 1.0, "squared_mmd": 0.2, "density": 0.9, "coverage": 0.8, "real_or_synthetic": 0.6}
    places = [(alpha, epsilon) for alpha in (0.1, 1.0) for epsilon in (1.0, 8.0)]
    rows = [row(cell_id=f"{alpha}{epsilon}", alpha=alpha, epsilon_target=epsilon, **scores) for alpha, epsilon in places]
    figure = fidelity(Settings.of(rows))
    words = ["Fréchet distance (lower is better)", "squared MMD (lower is better)", "density (as real rows: 1)"]
    assert titles(figure) == [*words, "coverage (higher is better)", "real or synthetic (ideal: 0.5)"] * 2
    assert [axes.get_ylabel() for axes in shown(figure)[::5]] == ["α = 0.1", "α = 1"]


def test_utility_against_bytes_is_of_one_client_and_a_method_without_epsilon_stands_in_each_panel(row):
    sent = {"uplink_bytes": 30_000_000, "downlink_bytes": 10_000_000}
    rows = [row(cell_id=f"{epsilon}", epsilon_target=epsilon, **sent) for epsilon in (1.0, 4.0)]
    rows.append(row(cell_id="o", label="open", epsilon_target=None, uplink_bytes=10_000_000, downlink_bytes=0))
    figure = communication(Settings.of(rows))
    assert titles(figure) == ["ε = 1", "ε = 4"]
    assert all(line(axes, (4.0, 0.5)) and line(axes, (1.0, 0.5)) for axes in shown(figure))


def test_clients_are_dots_their_own_generator_against_the_shared_one(row):
    rows = [row(cell_id="a"), row(cell_id="b", seed=1)]
    own = (("a", "north", 0.4), ("b", "north", 0.6), ("a", "south", 0.7), ("b", "south", 0.7))
    scores = [(cell, name, score, 0.5) for cell, name, score in own]
    columns = ["cell_id", "name", "own_balanced_accuracy", "shared_balanced_accuracy"]
    clients = pd.DataFrame([*scores, ("a", "west", None, None)], columns=columns)
    (axes,) = shown(sites(Settings.of(rows), clients))
    assert line(axes, (0.5, 0.5), (0.5, 0.7))


def scan(row: Any, label: str = "dp-cvae", epsilon: float | None = 1.0, **params: list[Any]) -> list[Any]:
    """Two seeds of every value of one parameter, labelled as a grid does."""
    ((name, values),) = params.items()
    return [
        row(
            cell_id=f"{label}{epsilon}{value}{seed}",
            label=f"{label} {name}={value}",
            algorithm=label,
            params={name: value, "latent": 4},
            epsilon_target=epsilon,
            seed=seed,
            balanced_accuracy=0.5 + 0.01 * at + 0.001 * seed,
            uplink_bytes=1000 * (at + 1),
            downlink_bytes=0,
            train_seconds=2.0 * (at + 1),
        )
        for at, value in enumerate(values)
        for seed in (0, 1)
    ]


def test_a_scanned_parameter_is_the_axis_and_what_it_left_of_a_label_the_line(row):
    rows = [*scan(row, rounds=[80, 5, 20]), *scan(row, "dp-gmm", rounds=[5, 20])]
    figure = over_parameter(rows, "rounds", "balanced_accuracy")
    assert legend(figure) == ["dp-cvae", "dp-gmm"]
    (axes,) = shown(figure)
    assert line(axes, (5, 0.5105), (20, 0.5205), (80, 0.5005))
    mine = over_parameter([changed(each, label="mine") for each in scan(row, rounds=[5, 20])], "rounds", "balanced_accuracy")
    assert legend(mine) == ["mine"]


@pytest.mark.parametrize(("over", "places"), [("bytes", [1e-4, 2e-4]), ("seconds", [2.0, 4.0])])
def test_what_a_training_costs_is_an_axis_that_joins_cells_of_a_scan(row, over, places):
    (axes,) = shown(over_parameter(scan(row, rounds=[5, 20]), over, "balanced_accuracy"))
    assert line(axes, *zip(places, (0.5005, 0.5105), strict=True))


def test_words_stand_one_after_another_and_a_figure_is_as_wide_as_asked_without_a_caption(row):
    figure = over_parameter(scan(row, observation=["shared", "own"]), "observation", "balanced_accuracy", width=3.35)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["own", "shared"]
    assert (figure.get_figwidth(), figure.legends[0].get_title().get_text()) == (3.35, "")


def test_what_was_not_scanned_is_a_mistake_with_a_way_out(row):
    with pytest.raises(UserError, match=r"over latent: no two cells .* differ in it; scan a parameter in the grid"):
        over_parameter(scan(row, rounds=[5, 20]), "latent", "balanced_accuracy")
    with pytest.raises(UserError, match="did you mean 'rounds'"):
        over_parameter(scan(row, rounds=[5, 20]), "round", "balanced_accuracy")


def test_diagnostics_are_means_of_the_rounds_and_not_private(row, training):
    rows = [row(cell_id=f"{epsilon}", epsilon_target=epsilon) for epsilon in (1.0, 4.0)]
    settings = Settings.of(rows)
    rounds = round_frame(settings, [*training("1.0", kl=2.0), *training("4.0", kl=[1.0] * 7 + [math.inf]), *training("other")])
    assert sorted(rounds["cell_id"].unique()) == ["1.0", "4.0"]
    assert rounds.query("cell_id == '4.0'")["kl_lost"].tolist() == [False] * 7 + [True]
    assert rounds["noise_to_signal"].eq(2.0).all()
    figure = diagnostics(settings, rounds)
    assert NOT_PRIVATE in figure.legends[0].get_title().get_text().replace("\n", " ")
    kl = next(axes for axes in shown(figure) if axes.get_ylabel().startswith("KL"))
    assert line(kl, *((t, 2.0) for t in range(8)))
    assert line(kl, *((t, 1.0) for t in range(7)))


def test_a_figure_is_written_as_the_same_bytes_again(row, tmp_path):
    rows = scan(row, rounds=[5, 20])
    svgs = [save_figure(utility(Settings.of(rows)), tmp_path / f"{name}.png") for name in "ab"]
    assert svgs[0] == svgs[1] == (tmp_path / "a.svg").read_bytes()
    assert imread(tmp_path / "a.png").shape[1] == 1800
    save_figure(utility(Settings.of(rows)), tmp_path / "c.svg")
    assert not (tmp_path / "c.png").exists()
    pdfs = [save_pdf(utility(Settings.of(rows), width=inches("column")), tmp_path / f"{name}.pdf").read_bytes() for name in "ab"]
    assert pdfs[0] == pdfs[1]
    assert b"/CIDFontType2" in pdfs[0]  # an embedded font, TrueType as fonttype 42 has it
    assert b"/Type3" not in pdfs[0]
    assert b"/MediaBox [ 0 0 241.2 " in pdfs[0]


@pytest.mark.parametrize("width", ["wide", "0", "nan", "100"])
def test_a_width_is_a_column_a_page_or_inches(width):
    assert (inches("page"), inches("3.5")) == (7.0, 3.5)
    with pytest.raises(UserError, match=rf"width {width}: is not a width; give column, page, or inches"):
        inches(width)
