"""Utility against bytes: what is drawn where, and what is left out."""

import pytest
from fedsim.report.communication import best_so_far, draw_communication, point_of
from fedsim.results.groups import group_seeds
from rows import make_row

from fedsim.results.columns import Row


def rows(label: str, megabytes: float, accuracy: float, epsilon: float | None = 1.0, **fields: object) -> list[Row]:
    sizes = {"uplink_bytes": int(3e6 * megabytes), "downlink_bytes": int(7e6 * megabytes), "clients": 10}
    facts = {"cell_id": f"{label}{epsilon}", "label": label, "epsilon_target": epsilon, "balanced_accuracy": accuracy}
    return [make_row(**{**sizes, **facts, **fields})]


def test_a_point_is_the_bytes_of_one_client_and_the_mean_score() -> None:
    both = [*rows("a", 2.0, 0.5), *rows("a", 2.0, 0.7, seed=1, cell_id="other")]
    (group,) = group_seeds(both)
    assert point_of(group) == (pytest.approx(2.0), pytest.approx(0.6))


def test_the_line_holds_what_no_cheaper_method_beats() -> None:
    assert best_so_far([(4.0, 0.9), (1.0, 0.5), (2.0, 0.4), (1.0, 0.6), (3.0, 0.6)]) == [(1.0, 0.6), (4.0, 0.9)]


def test_every_epsilon_has_a_panel_with_its_methods_and_those_without_one() -> None:
    found = [*rows("a", 1.0, 0.5), *rows("a", 1.0, 0.6, 8.0), *rows("b", 4.0, 0.7), *rows("plain", 9.0, 0.9, None)]
    figure = draw_communication(group_seeds(found))
    assert figure is not None
    shown = {axes.get_title("left"): sorted(line.get_xdata()[0] for line in axes.lines[1:]) for axes in figure.axes}
    assert {title: pytest.approx(values) for title, values in shown.items()} == {"ε = 1": [1.0, 4.0, 9.0], "ε = 8": [1.0, 9.0]}


def test_without_bytes_or_with_the_same_everywhere_there_is_nothing_to_show() -> None:
    assert draw_communication(group_seeds([*rows("a", 1.0, 0.5), *rows("b", 1.0, 0.6)])) is None
    assert draw_communication(group_seeds([*rows("a", 1.0, 0.5), *rows("b", 2.0, 0.6, downlink_bytes=None)])) is None
    assert draw_communication(group_seeds([*rows("a", 1.0, 0.5), *rows("b", 0.0, 0.6)])) is None
