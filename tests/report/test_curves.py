import math
import re
from itertools import pairwise

import pytest
from benches import no_file_above
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.image import imread

from fedsim.report.curves import CURVES, draw_curves
from fedsim.report.figures import MUTED, PAPER, SERIES, drawn, save_figure, svg_text
from fedsim.report.lines import Axis
from fedsim.results.groups import group_seeds

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


def test_no_two_of_many_methods_look_alike(row):
    private = [row(cell_id=f"p{i}", label=f"private {i}") for i in range(14)]
    levels = [row(cell_id=f"l{i}", label=f"level {i}", epsilon_target=None, epsilon_spent=None, claim="none") for i in range(12)]
    predicting = [row(cell_id=f"c{i}", label=f"classifier {i}", yields="classifier") for i in range(14)]
    handles = draw_curves(group_seeds(private + levels + predicting)).legends[0].get_lines()
    looks = {(line.get_color(), line.get_marker(), str(line._dash_pattern)) for line in handles}
    assert len(looks) == 40


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


def test_equal_ratios_are_equal_distances():
    axis = Axis((1.0, 2.0, 4.0), infinite=False)
    first, second, third = map(axis.position, axis.ticks)
    assert second - first == pytest.approx(third - second)


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


def test_a_heuristic_claim_is_dashed_with_open_markers_and_named(row):
    both = [
        row(label=label, claim=claim, epsilon_target=epsilon)
        for label, claim in (("sound", "proved"), ("hoped", "heuristic"))
        for epsilon in (1.0, 4.0)
    ]
    assert legend(both) == ["sound", "hoped (heuristic ε)"]
    sound, hoped = draw_curves(group_seeds(both)).legends[0].legend_handles
    assert sound.get_linestyle() == "-"
    assert hoped.get_linestyle() != "-"
    assert (to_hex(sound.get_markerfacecolor()), to_hex(hoped.get_markerfacecolor())) == (SERIES[0], PAPER)


def test_a_stated_claim_is_dashed_with_half_open_markers_and_a_checked_one_is_only_named(row):
    both = [
        row(label=label, claim=claim, epsilon_target=epsilon)
        for label, claim in (("said", "stated"), ("tried", "checked"), ("hoped", "heuristic"))
        for epsilon in (1.0, 4.0)
    ]
    assert legend(both) == ["said (stated ε)", "tried (checked ε)", "hoped (heuristic ε)"]
    said, tried, hoped = draw_curves(group_seeds(both)).legends[0].legend_handles
    assert said.get_linestyle() == hoped.get_linestyle() != tried.get_linestyle() == "-"
    assert (said.get_fillstyle(), tried.get_fillstyle()) == ("left", "full")
    assert (to_hex(said.get_markerfacecolor()), to_hex(said.get_markerfacecoloralt())) == (SERIES[0], PAPER)
    assert to_hex(tried.get_markerfacecolor()) == SERIES[1]


def test_a_classifier_is_thin_with_crosses_and_named_beside_generators(row):
    both = [
        row(label=label, yields=yields, epsilon_target=epsilon)
        for label, yields in (("makes rows", "generator"), ("predicts", "classifier"), ("old", None))
        for epsilon in (1.0, 4.0)
    ]
    level = row(cell_id="l", label="open", yields="classifier", epsilon_target=None, epsilon_spent=None, claim="none")
    figure = draw_curves(group_seeds([*both, level]))
    assert legend([*both, level]) == ["makes rows", "predicts (classifier)", "old", "open (classifier, not private)"]
    makes, predicts, old, line = figure.legends[0].legend_handles
    assert predicts.get_linewidth() < makes.get_linewidth() == old.get_linewidth()
    assert line.get_linewidth() < makes.get_linewidth()
    assert predicts.get_marker() == "+"
    assert "classifiers, which generate no rows" in " ".join(figure.legends[0].get_title().get_text().split())
    assert "classifiers" not in draw_curves(group_seeds(both[:2])).legends[0].get_title().get_text()


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


def test_the_references_are_grey_labelled_lines(quickstart):
    texts = [text.get_text() for text in panels(quickstart)[0].texts]
    assert texts == ["chance 0.10", "local-only 0.38", "ceiling 0.95"]
    assert {text.get_color() for text in panels(quickstart)[0].texts} == {MUTED}


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


def test_every_bar_lies_inside_its_axes(row):
    inner = {"ceiling_balanced_accuracy": 0.62, "local_only_balanced_accuracy": 0.6, "chance": 0.58}
    axes = panels([row(seed=seed, balanced_accuracy=0.5 + seed / 10, **inner) for seed in range(3)])[0]
    ((least, most),) = bars(axes)
    low, high = axes.get_ylim()
    assert low < least < 0.4
    assert 0.8 < most < high


def test_names_of_references_at_one_level_stand_apart(row):
    axes = panels([row(ceiling_balanced_accuracy=0.9, local_only_balanced_accuracy=0.9)])[0]
    heights = sorted(text.xy[1] for text in axes.texts)
    low, high = axes.get_ylim()
    assert min(b - a for a, b in pairwise(heights)) > 0.07 * (high - low)


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


def test_the_caption_of_a_single_panel_stays_inside_the_figure(row):
    figure = draw_curves(group_seeds([row(seed=seed) for seed in range(3)]))
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    box = legend.get_title().get_window_extent()
    assert figure.bbox.x0 <= box.x0
    assert box.x1 <= figure.bbox.x1


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


def test_in_a_page_panels_and_names_are_apart_and_take_their_colours_from_it(quickstart):
    figure = draw_curves(group_seeds(quickstart))
    parts = drawn(figure, svg_text(figure), "curves", "Curves").parts
    assert [part.kind for part in parts] == ["name"] * 3 + ["panel"] * 2 + ["caption"]
    assert [part.text for part in parts[:5]] == ["fedhypevae", "weight-noise", "fedavg-cvae (not private)", "α = 0.1", "α = 1"]
    svg = "".join(part.svg for part in parts)
    assert "var(--ink)" in svg
    assert "var(--series-2)" in svg
    assert not any(colour in svg for colour in (*SERIES, MUTED, PAPER))
    assert all(part.svg.count("<g") == part.svg.count("</g>") > 0 for part in parts[:5])


def test_a_panel_holds_all_that_is_written_beside_its_axes(quickstart):
    figure = draw_curves(group_seeds(quickstart))
    parts = drawn(figure, svg_text(figure), "curves", "Curves").parts
    for axes, part in zip(figure.axes, (part for part in parts if part.kind == "panel"), strict=True):
        left, top, width, height = map(float, re.match('viewBox="([^"]*)"', part.svg)[1].split())
        for text in (*axes.texts, axes.xaxis.label):
            box = text.get_window_extent()
            assert left <= box.x0 <= box.x1 <= left + width
            assert top <= figure.bbox.height - box.y1 <= figure.bbox.height - box.y0 <= top + height
        assert part.width == pytest.approx(width * 96 / 72, abs=0.01)


def test_methods_that_are_the_same_everywhere_are_drawn_once_and_pale_beside_others(row):
    def rows(label, scores):
        return [row(cell_id=f"{label}{alpha}", label=label, alpha=alpha, balanced_accuracy=score) for alpha, score in scores.items()]

    same = rows("same", {0.1: 0.5, 1.0: 0.5})
    (panel,) = panels(same)
    assert panel.get_title(loc="left") == "every α and number of clients"
    first, second = panels(same + rows("other", {0.1: 0.6, 1.0: 0.7}))
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["α = 0.1", "α = 1"]
    assert [[line.get_alpha() for line in axes.lines if line.get_color() == SERIES[0]] for axes in (first, second)] == [
        [None] * 2,
        [0.35] * 2,
    ]
    assert solid_points(second, SERIES[1]) == [0.7]
    caption = draw_curves(group_seeds(same)).legends[0].get_title().get_text()
    assert "same: the same at every α and number of clients" in " ".join(caption.split())


def test_the_y_axis_fits_what_is_drawn_and_is_marked_where_it_does_not_begin_at_0(row):
    high, low = (
        panels([row(cell_id=str(i), epsilon_target=float(i + 1), balanced_accuracy=base + i / 100, **LEVELS) for i in range(2)])[0]
        for base in (0.9, 0.2)
    )
    assert 0.7 < high.get_ylim()[0] < 0.86
    assert "chance 0.10 ↓" in [text.get_text() for text in high.texts]
    assert low.get_ylim()[0] == 0
    marks = [[line for line in axes.lines if line.get_transform() == axes.transAxes] for axes in (high, low)]
    assert [len(lines) for lines in marks] == [1, 0]


LEVELS = {"ceiling_balanced_accuracy": 0.95, "local_only_balanced_accuracy": 0.86, "chance": 0.1}


def test_an_audit_is_a_tick_under_its_point_at_the_epsilon_that_it_refutes(row):
    facts = {"audit_epsilon_lower": 0.5, "audit_epsilon_any": 0.2, "audit_method": "white box", "audit_pairs": 500}
    (axes,) = panels([row(cell_id="a", **facts), row(cell_id="b", epsilon_target=4.0)])
    (line,) = [line for line in axes.lines if line.get_gid() == "audit"]
    bound, claim = line.get_xdata()
    assert (bound, claim) == pytest.approx((math.log10(0.5), 0.0))
    assert line.get_ydata()[0] < 0.5
    (tick,) = [line for line in axes.lines if line.get_marker() == "|"]
    assert tick.get_xdata()[0] == pytest.approx(bound)
    assert axes.get_xlim()[0] < bound


def test_a_bound_of_an_audit_that_says_nothing_is_not_drawn(row):
    plain, audited = (panels([row(audit_epsilon_lower=bound)])[0] for bound in (None, 0.009))
    assert [line for line in audited.lines if line.get_gid() == "audit" or line.get_marker() == "|"] == []
    assert audited.get_xlim() == plain.get_xlim()


def test_a_refuted_claim_is_never_drawn(row):
    facts = {"audit_epsilon_lower": 1.5, "audit_epsilon_any": 0.2, "audit_pairs": 500, "balanced_accuracy": 0.99}
    refuted = row(cell_id="r", seed=1, status="refuted", **facts)
    (axes,) = panels([row(cell_id="a"), refuted])
    assert solid_points(axes, SERIES[0]) == [0.5]


def test_a_method_that_used_public_rows_has_a_star_a_mark_and_a_line_in_the_caption(row):
    rows = [row(label="alone"), row(label="helped", public="BloodMNIST", public_hash="0"), row(label="read", yields="classifier")]
    legend = draw_curves(group_seeds(rows)).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["alone", "helped †", "read (classifier)"]
    alone, helped, read = (line.get_marker() for line in legend.get_lines())
    assert isinstance(helped, tuple)
    assert helped[1] == 1  # a star
    assert helped not in (alone, read)
    assert "stars, †: uses public data: BloodMNIST" in legend.get_title().get_text().replace("\n", " ")
