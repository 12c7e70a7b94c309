import math

import pytest
from cells import quick, small_cells
from fedsim.report.diagnostics import DIAGNOSTICS, DIAGNOSTICS_NOT_PRIVATE, Rounds, draw_diagnostics, round_frame, settings
from matplotlib.image import imread
from rows import add_lines, add_rows, make_row

from fedsim.report.figures import SHADES, save_figure
from fedsim.results.run import grid_rounds
from fedsim.training.trial import run_trial


def figure_of(rows, records):
    return draw_diagnostics(Rounds.of(rows, records))


def stored(tmp_path, records):
    """The records as they come back from a run folder."""
    add_rows(tmp_path, *(make_row(cell_id=cell) for cell in dict.fromkeys(record["cell_id"] for record in records)))
    add_lines(tmp_path / "rounds.jsonl", records)
    return grid_rounds(tmp_path)


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def heights(axes, colour):
    """The heights of the solid line of one colour."""
    (line,) = [line for line in axes.lines if line.get_color() == colour and line.get_linestyle() == "-" and len(line.get_xdata()) > 2]
    return [float(y) for y in line.get_ydata()]


@pytest.fixture
def grid(row, training):
    """Two seeds at epsilon 1, 4, inf: rows and records."""
    rows = [row(cell_id=f"{seed}/{epsilon}", seed=seed, epsilon_target=epsilon) for epsilon in (1.0, 4.0, math.inf) for seed in (0, 1)]
    noise = {1.0: 200.0, 4.0: 50.0, math.inf: 0.0}
    records = [record for each in rows for record in training(each.cell_id, noise_norm=noise[each.epsilon_target], kl=1.0 + each.seed)]
    return rows, records


def test_every_quantity_has_a_panel_with_a_line_for_every_epsilon(tmp_path, grid):
    rows, records = grid
    figure = figure_of(rows, stored(tmp_path, records))
    drawn = panels(figure)
    assert list(drawn) == [
        *("loss: reconstruction", "loss: weighted KL", "loss: kernel score", "loss: Lipschitz", "KL, nats an example"),
        *("norm before clipping", "clipped fraction", "noise norm / signal norm", "generated norms (– – prior)", "cross-client MMD²"),
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ε = 1", "ε = 4", "ε = ∞"]


def test_a_line_is_the_mean_over_the_cells_of_an_epsilon(tmp_path, grid):
    rows, records = grid
    axes = panels(figure_of(rows, stored(tmp_path, records)))
    assert heights(axes["KL, nats an example"], SHADES[0]) == pytest.approx([1.5] * 8)
    assert heights(axes["noise norm / signal norm"], SHADES[0]) == pytest.approx([2.0] * 8)


def test_methods_stand_below_each_other_and_what_one_lacks_stays_empty(tmp_path, row, training):
    rows = [row(cell_id="a", label="full $x_1$"), row(cell_id="b", label="bare", epsilon_target=None, clip=None)]
    bare = [{"cell_id": "b", "round": t, "loss_likelihood": -1.0 - t} for t in range(4)]
    figure = figure_of(rows, stored(tmp_path, training("a") + bare))
    assert [text.get_text() for text in figure.texts][:2] == ["full $x_1$", "bare"]
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles.count("loss: likelihood") == 1
    assert titles.count("clipped fraction") == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ε = 1", "no ε"]


def test_a_quantity_that_no_method_has_leaves_no_panel(tmp_path, row, training):
    records = training("a")
    for record in records:
        del record["cross_client_mmd"], record["kl"]
        record["gradient_norm_quantiles"] = []
    titles = panels(figure_of([row(cell_id="a")], stored(tmp_path, records)))
    assert not {"cross-client MMD²", "KL, nats an example", "norm before clipping"} & titles.keys()
    assert "clipped fraction" in titles


def test_there_is_no_figure_without_two_rounds_of_something(tmp_path, row, training):
    assert figure_of([row(cell_id="a")], []) is None
    assert figure_of([], stored(tmp_path, training("a"))) is None
    assert figure_of([row(cell_id="a")], training("a", rounds=1)) is None
    assert figure_of([row(cell_id="a")], [{"cell_id": "a", "round": t, "release": "dp-sgd"} for t in range(5)]) is None


def test_rounds_of_a_warm_start_are_left_out(tmp_path, row, training):
    warm = [
        {"cell_id": "a", "round": t, "release": name, "main": False, "signal_norm": 1e6, "noise_norm": 1.0}
        for t, name in enumerate(["mean", "moments"])
    ]
    records = stored(tmp_path, warm + training("a", start=2))
    frame = round_frame(settings([row(cell_id="a")]), records)
    assert list(frame["round"]) == list(range(2, 10))
    assert set(frame["rounds"]) == {8}


@pytest.mark.parametrize(
    ("entry", "drawn"),
    [
        (quick("fedlambda"), [0, 1, 2]),
        (quick("dp-linear"), [1, 2, 3]),
        (quick("dp-gmm", em_steps=4), [3, 4, 5, 6]),
    ],
    ids=["fedlambda", "warm start", "dp-gmm"],
)
def test_the_training_is_drawn_and_not_what_comes_before_or_after_it(row, entry, drawn):
    prepared = small_cells(entry, epsilon=4.0)
    (trial,), (data,) = prepared.trials, prepared.data.values()
    *rounds, _ = run_trial(trial, data)
    records = [{"cell_id": "a", "round": each.round, **each.values} for each in rounds]
    assert list(round_frame(settings([row(cell_id="a")]), records)["round"]) == drawn
    assert len(records) > len(drawn)
    assert figure_of([row(cell_id="a")], records) is not None


def test_values_that_are_missing_or_not_finite_do_not_break_the_others(tmp_path, row, training):
    records = training("a", kl=2.0) + training("b", kl=4.0)
    records[3] |= {"kl": math.nan, "loss_kl": math.inf, "signal_norm": 0.0, "gradient_norm_quantiles": []}
    records[4] |= {"kl": None, "loss_kl": None, "clipped_fraction": None}
    rows = [row(cell_id="a"), row(cell_id="b", seed=1)]
    axes = panels(figure_of(rows, stored(tmp_path, records)))["KL, nats an example"]
    assert heights(axes, SHADES[6]) == pytest.approx([3, 3, 3, 4, 4, 3, 3, 3])


def test_what_is_told_as_quantiles_under_any_name_is_no_line(row, training):
    records = [record | {"loss_own_quantiles": [1.0, 2.0, 3.0, 4.0, 5.0]} for record in training("a")]
    assert list(panels(figure_of([row(cell_id="a")], records))) == list(panels(figure_of([row(cell_id="a")], training("a"))))


def test_a_cell_that_failed_is_drawn_as_far_as_it_came(tmp_path, row, failed, training):
    rows = [row(cell_id="a"), failed(cell_id="b", label="broken")]
    figure = figure_of(rows, stored(tmp_path, training("a") + training("b", rounds=3)))
    assert [text.get_text() for text in figure.texts][:2] == ["fedhypevae", "broken"]


def test_the_files_are_the_same_every_time_and_say_that_they_are_not_private(tmp_path, grid):
    figures = [figure_of(*grid) for _ in range(2)]
    assert DIAGNOSTICS_NOT_PRIVATE in " ".join(text.get_text() for text in figures[0].texts)
    (png, svg), again = (save_figure(figure, tmp_path / folder, DIAGNOSTICS) for figure, folder in zip(figures, "ab", strict=True))
    assert (png.name, svg.name) == ("diagnostics.png", "diagnostics.svg")
    assert [path.read_bytes() for path in again] == [png.read_bytes(), svg.read_bytes()]
    assert imread(png).std() > 0.05
