import math

import pytest
from benches import no_file_above
from fedsim.report.curves import CURVES, draw_curves
from fedsim.results.groups import group_seeds
from matplotlib.collections import LineCollection
from matplotlib.image import imread

from fedsim.report.figures import SERIES, save_figure

UNACCOUNTED = {"type": "Unaccounted", "message": "client 0 has 0 steps", "traceback": ""}


def panels(rows):
    figure = draw_curves(group_seeds(rows))
    return [axes for axes in figure.axes if axes.axison]


def legend(rows):
    return [text.get_text() for text in draw_curves(group_seeds(rows)).legends[0].get_texts()]


def solid_points(axes, colour):
    """Heights of the markers of one method."""
    lines = [line for line in axes.lines if line.get_color() == colour and line.get_marker() not in ("None", "", None, "_")]
    return [float(y) for line in lines for y in line.get_ydata()]


def bars(axes):
    """Low and high end of every bar."""
    segments = [
        segment for collection in axes.collections if isinstance(collection, LineCollection) for segment in collection.get_segments()
    ]
    return [(float(low), float(high)) for (_, low), (_, high) in segments]


def test_a_panel_for_every_partition_and_a_name_for_every_method(quickstart):
    assert [axes.get_title(loc="left") for axes in panels(quickstart)] == ["α = 0.1", "α = 1"]
    assert legend(quickstart) == ["fedhypevae", "weight-noise", "fedavg-cvae (not private)"]


@pytest.mark.parametrize(
    ("field", "values", "titles"),
    [
        ("clients", (4, 10), ["α = 0.1 · 4 clients", "α = 0.1 · 10 clients"]),
        ("scheme", ("dirichlet", "shards"), ["dirichlet · α = 0.1", "shards · α = 0.1"]),
        ("dataset", ("blood", "organ"), ["blood · α = 0.1", "organ · α = 0.1"]),
    ],
)
def test_points_of_another_place_are_in_a_panel_of_their_own(row, field, values, titles):
    rows = [row(cell_id=str(value), balanced_accuracy=0.4 + position / 10, **{field: value}) for position, value in enumerate(values)]
    drawn = panels(rows)
    assert [axes.get_title(loc="left") for axes in drawn] == titles
    assert [solid_points(axes, SERIES[0]) for axes in drawn] == [[0.4], [0.5]]


def test_points_are_the_means_over_seeds(quickstart):
    axes = panels(quickstart)[1]
    means = [group.mean("balanced_accuracy") for group in group_seeds(quickstart) if group.alpha == 1.0 and group.label == "fedhypevae"]
    assert solid_points(axes, SERIES[0]) == pytest.approx(means)


def test_epsilon_is_logarithmic_and_infinity_has_a_place_of_its_own(quickstart, row):
    axes = panels(quickstart)[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4", "∞"]
    one, four, infinite = axes.get_xticks()
    assert (one, four) == pytest.approx((0, math.log10(4)))
    assert infinite > four
    only = panels([row(epsilon_target=math.inf)])[0]
    assert [label.get_text() for label in only.get_xticklabels()] == ["∞"]


def test_overspent_unaccounted_and_failed_rows_are_never_drawn(row, failed):
    drawn = [row(seed=seed, balanced_accuracy=0.4 + seed / 100) for seed in range(3)]
    left_out = [
        row(cell_id="o", seed=3, status="overspent", epsilon_spent=2.0, balanced_accuracy=0.99),
        row(cell_id="p", epsilon_target=4.0, status="overspent", epsilon_spent=9.0, balanced_accuracy=0.99),
        row(cell_id="u", seed=4, status="unaccounted", error=UNACCOUNTED, epsilon_spent=None, balanced_accuracy=0.99),
        row(cell_id="v", epsilon_target=8.0, status="unaccounted", error=UNACCOUNTED, epsilon_spent=None, balanced_accuracy=0.99),
        failed(cell_id="f", seed=4),
    ]
    assert solid_points(panels(drawn + left_out)[0], SERIES[0]) == pytest.approx([0.41])
    assert draw_curves(group_seeds(left_out)) is None
    assert draw_curves([]) is None


def test_the_lack_of_a_claim_at_infinity_does_not_mark_a_proved_method(row):
    assert legend([row(epsilon_target=1.0), row(epsilon_target=math.inf)]) == ["fedhypevae"]


def test_a_single_seed_has_no_bar(row):
    one = panels([row()])[0]
    several = panels([row(seed=seed, balanced_accuracy=0.4 + seed / 100) for seed in range(3)])[0]
    assert bars(one) == []
    assert [high - low for low, high in bars(several)] == pytest.approx([2 * 4.302653 * 0.01 / math.sqrt(3)])


def test_a_method_without_epsilon_is_a_level_with_a_band(row):
    rows = [row(label="plain", epsilon_target=None, seed=seed, balanced_accuracy=0.8 + seed / 100) for seed in range(3)]
    axes = panels(rows)[0]
    level = next(line for line in axes.lines if line.get_color() == SERIES[0])
    assert level.get_ydata() == pytest.approx([0.81, 0.81])
    assert len(axes.patches) == 1
    assert axes.get_xlabel() == "no method here has an ε"


def test_every_panels_own_references_lie_inside_its_axes(row):
    levels = {"digits": (0.97, 0.86, 0.1), "hard": (0.44, 0.37, 0.33)}
    names = ("ceiling_balanced_accuracy", "local_only_balanced_accuracy", "chance")
    rows = [
        row(dataset=dataset, balanced_accuracy=values[1], **dict(zip(names, values, strict=True))) for dataset, values in levels.items()
    ]
    for axes, values in zip(panels(rows), levels.values(), strict=True):
        low, high = axes.get_ylim()
        ceiling, local_only, _ = values
        assert low <= local_only
        assert ceiling <= high


def test_the_legend_and_the_names_lie_outside_the_data(quickstart):
    figure = draw_curves(group_seeds(quickstart))
    figure.draw_without_rendering()
    frames = [axes.get_window_extent() for axes in figure.axes]
    outside = [
        figure.legends[0].get_window_extent(),
        *(text.get_window_extent() for axes in figure.axes for text in axes.texts),
    ]
    assert not any(box.overlaps(frame) for box in outside for frame in frames)
    assert all(figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1) for box in outside)


@pytest.mark.parametrize("label", ["$x_1$", r"$\frac$", "_hidden", "<script>alert(1)</script>", "-->", "a" * 90])
def test_any_label_is_drawn_as_it_is(row, label, tmp_path):
    rows = [row(label=label)]
    assert legend(rows)[0].replace("\n", "") == label
    figure = draw_curves(group_seeds(rows))
    save_figure(figure, tmp_path, CURVES)
    assert "<script" not in (tmp_path / "privacy_utility.svg").read_text()


def test_the_files_are_written_and_the_same_rows_give_the_same_bytes(quickstart, tmp_path):
    for folder in ("one", "two"):
        save_figure(draw_curves(group_seeds(quickstart)), tmp_path / folder, CURVES)
    for name in ("privacy_utility.png", "privacy_utility.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    height, width, _ = imread(tmp_path / "one" / "privacy_utility.png").shape
    assert width > 1200
    assert height > 600


def test_a_picture_that_cannot_be_written_leaves_the_old_one(quickstart, tmp_path):
    figure = draw_curves(group_seeds(quickstart))
    before = {path: path.read_bytes() for path in save_figure(figure, tmp_path, CURVES)}
    with no_file_above(1000), pytest.raises(OSError, match="File too large"):
        save_figure(figure, tmp_path, CURVES)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_bound_of_an_audit_that_says_nothing_is_not_drawn(row):
    plain, audited = (panels([row(audit_epsilon_lower=bound)])[0] for bound in (None, 0.009))
    assert [line for line in audited.lines if line.get_gid() == "audit" or line.get_marker() == "|"] == []
    assert audited.get_xlim() == plain.get_xlim()


def test_a_refuted_claim_is_never_drawn(row):
    facts = {"audit_epsilon_lower": 1.5, "audit_epsilon_any": 0.2, "audit_pairs": 500, "balanced_accuracy": 0.99}
    refuted = row(cell_id="r", seed=1, status="refuted", **facts)
    (axes,) = panels([row(cell_id="a"), refuted])
    assert solid_points(axes, SERIES[0]) == [0.5]


def test_a_name_says_what_claim_a_method_has_what_it_yields_and_that_it_used_public_rows(row):
    facts = {
        "said": {"claim": "stated"},
        "hoped": {"claim": "heuristic"},
        "reads": {"yields": "classifier"},
        "helped": {"public": "BloodMNIST", "public_hash": "0"},
    }
    names = legend([row(cell_id=label, label=label, **fields) for label, fields in facts.items()])
    assert names == ["said (stated ε)", "hoped (heuristic ε)", "reads (classifier)", "helped †"]


def test_the_references_are_labelled_lines(quickstart):
    assert [text.get_text() for text in panels(quickstart)[0].texts] == ["chance 0.10", "local-only 0.38", "ceiling 0.95"]


def test_methods_that_are_the_same_everywhere_are_drawn_once(row):
    (panel,) = panels([row(cell_id=f"{alpha}", alpha=alpha, balanced_accuracy=0.5) for alpha in (0.1, 1.0)])
    assert panel.get_title(loc="left") == "every α and number of clients"
