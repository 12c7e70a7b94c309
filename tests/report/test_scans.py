from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fedsim.report.choice import chosen_figure
from fedsim.report.scans import scanned

from fedsim.errors import UserError
from fedsim.report.figures import inches, save_pdf
from fedsim.results.columns import Row

MakeRow = Callable[..., Row]


def scan(row: MakeRow, label: str = "dp-cvae", epsilon: float | None = 1.0, **params: list[Any]) -> list[Row]:
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


def test_a_scanned_parameter_is_the_axis_and_what_it_left_of_a_label_the_line(row: MakeRow) -> None:
    rows = [*scan(row, rounds=[80, 5, 20]), *scan(row, "dp-gmm", rounds=[5, 20])]
    lines = scanned(rows, "rounds", "balanced_accuracy")
    assert {key[-1]: [at for at, _ in points] for key, points in lines.items()} == {"dp-cvae": [5, 20, 80], "dp-gmm": [5, 20]}
    assert all(len(group.rows) == 2 for points in lines.values() for _, group in points)


def test_rows_of_two_runs_under_one_label_are_one_line_too(row: MakeRow) -> None:
    rows = [each.model_copy(update={"label": "mine"}) for each in scan(row, rounds=[5, 20])]
    assert [key[-1] for key in scanned(rows, "rounds", "balanced_accuracy")] == ["mine"]


@pytest.mark.parametrize(("over", "places"), [("bytes", [1e-4, 2e-4]), ("seconds", [2.0, 4.0])])
def test_what_a_training_costs_is_an_axis_that_joins_cells_of_a_scan(row: MakeRow, over: str, places: list[float]) -> None:
    ((_, points),) = scanned(scan(row, rounds=[5, 20]), over, "balanced_accuracy").items()
    assert [at for at, _ in points] == pytest.approx(places)


def test_a_method_without_epsilon_stands_in_the_panel_of_each_budget(row: MakeRow) -> None:
    rows = [*scan(row, rounds=[5, 20]), *scan(row, epsilon=4.0, rounds=[5, 20]), *scan(row, "open", None, rounds=[5, 20])]
    figure = chosen_figure(rows, over="rounds", width=7.0)
    drawn = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in drawn] == ["ε = 1", "ε = 4"]
    assert [len(axes.lines) for axes in drawn] == [2, 2]


def test_words_stand_one_after_another(row: MakeRow) -> None:
    figure = chosen_figure(scan(row, observation=["shared", "own"]), over="observation", width=3.35)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["own", "shared"]


def test_what_was_not_scanned_is_a_mistake_with_a_way_out(row: MakeRow) -> None:
    rows = scan(row, rounds=[5, 20])
    with pytest.raises(UserError, match=r"over latent: no two cells .* differ in it; scan a parameter in the grid"):
        chosen_figure(rows, over="latent")
    with pytest.raises(UserError, match="did you mean 'rounds'"):
        chosen_figure(rows, over="round")


def test_a_pdf_has_its_text_as_text_the_width_and_the_same_bytes_again(row: MakeRow, tmp_path: Path) -> None:
    rows = scan(row, rounds=[5, 20])
    one, other = (save_pdf(chosen_figure(rows, width=inches("column")), tmp_path / f"{name}.pdf").read_bytes() for name in "ab")
    assert one == other
    assert b"/Subtype /Type0" in one  # an embedded font, TrueType as fonttype 42 has it
    assert b"/CIDFontType2" in one
    assert b"/Type3" not in one
    assert b"/MediaBox [ 0 0 241.2 " in one


@pytest.mark.parametrize("width", ["wide", "0", "nan", "100"])
def test_a_width_is_a_column_a_page_or_inches(width: str) -> None:
    assert (inches("page"), inches("3.5")) == (7.0, 3.5)
    with pytest.raises(UserError, match=rf"width {width}: is no width; give column, page, or inches"):
        inches(width)
