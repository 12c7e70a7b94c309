import pytest
from matplotlib.figure import Figure

from fedsim.report.figures import end_at


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((0.4, 0.6), (0.4, 0.6)),
        ((-3.0, 0.5), (-0.025, 0.5)),
        ((0.5, 7.0), (0.5, 1.025)),
        ((-3.0, 7.0), (-0.05, 1.05)),
    ],
    ids=["inside", "below", "above", "both"],
)
def test_an_axis_ends_a_little_outside_of_what_there_can_be_and_is_never_widened(ends, expected):
    axes = Figure().subplots()
    axes.set_ylim(*ends)
    end_at(axes, 0.0, 1.0)
    assert axes.get_ylim() == pytest.approx(expected)
