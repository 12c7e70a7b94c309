import math

import pytest
from fedsim.report.lines import ends_of
from fedsim.results.groups import Interval


@pytest.mark.parametrize(
    ("measure", "expected"),
    [("balanced_accuracy", (0.0, 1.0)), ("frechet_distance", (0.0, 1.5)), ("squared_mmd", (-0.5, 1.5)), ("coverage", (0.0, 1.0))],
)
def test_a_bar_ends_where_the_score_does(measure, expected):
    assert ends_of(Interval(0.5, 1.0, 3, (-0.5, 1.5)), measure) == expected


def test_a_bar_reaches_its_point_wherever_that_is():
    assert ends_of(Interval(1.25, 0.5, 3, (0.75, 1.75)), "balanced_accuracy") == (0.75, 1.25)


def test_a_confidence_interval_of_two_seeds_is_not_shown_and_their_range_and_deviation_are():
    assert Interval.of([0.4, 0.6]).ends is None
    assert Interval.of([0.4, 0.6]).half_width == pytest.approx(12.7062 * 0.1, rel=1e-4)
    assert Interval.of([0.4, 0.6], "range").ends == (0.4, 0.6)
    assert Interval.of([0.4, 0.6], "range").beside == pytest.approx(0.1)
    assert Interval.of([0.4, 0.6], "sd").beside == pytest.approx(math.sqrt(0.02))
    assert Interval.of([0.4, 0.5, 0.6]).beside == pytest.approx(4.302653 * 0.1 / math.sqrt(3))
    assert Interval.of([0.5, 0.5], "range").ends is None
