"""Pictures: frames are tested as frames, and that every figure is drawn with what a reader
needs.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from rows import make_failed, make_published, make_rounds, make_row

from fedsim.errors import UserError
from fedsim.evaluation.measures import MEASURES
from fedsim.grid.models import Published
from fedsim.partition import PartitionSpec, make_partition
from fedsim.partition.matrix import LabelMatrix
from fedsim.plugins.registry import known, lookup
from fedsim.report.figures import (
    caption_of,
    communication,
    diagnostics,
    fidelity,
    over_parameter,
    partitions,
    sites,
    utility,
)
from fedsim.report.findings import round_frame
from fedsim.report.panels import (
    FIXED_LOOKS,
    INK,
    epsilon_axis,
    inches,
    look_numbers,
    looks,
    save_figure,
    save_pdf,
)
from fedsim.results.columns import Row
from fedsim.results.stats import SeedGroups

SHIPPED = ("algorithms", "baselines")
"""The packages of shipped methods."""


def shown(figure: Any) -> list[Any]:
    """The panels that are drawn."""
    assert figure is not None
    return [axes for axes in figure.axes if axes.axison]


def figure_of(settings: SeedGroups, width: float | None = None) -> Any:
    figure = utility(settings, width=width)
    assert figure is not None
    return figure


def titles(figure: Any) -> list[str]:
    return [axes.get_title(loc="left") for axes in shown(figure)]


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def line(axes: Any, *points: Any) -> bool:
    """Whether a line is drawn through these points, but for the shift of methods side by side."""
    wanted = np.array(points, dtype=float)
    return any(
        drawn.get_xydata().shape == wanted.shape
        and np.allclose(drawn.get_xydata(), wanted, rtol=1e-5, atol=[0.02, 1e-8])
        for drawn in axes.lines
    )


def levels(axes: Any) -> dict[float, Any]:
    """The horizontal lines of a panel, by their height."""
    return {
        round(drawn.get_ydata()[0], 3): drawn
        for drawn in axes.lines
        if len(set(drawn.get_ydata())) == 1 and list(drawn.get_xdata()) == [0, 1]
    }


def written(axes: Any) -> list[str]:
    """The references that are written at the edges of a panel."""
    return [text for each in axes.texts for text in each.get_text().splitlines()]


def test_utility_draws_means_over_epsilon(quickstart: list[Row]) -> None:
    settings = SeedGroups.of(quickstart)
    figure = utility(settings)
    means = settings.facts.join(settings.mean("balanced_accuracy")).query(
        "label == 'fedhypevae' and alpha == 0.1"
    )["balanced_accuracy"]
    at, ticks = epsilon_axis(settings.facts["epsilon_target"])
    assert [*ticks.values()] == ["1", "4", "∞"]
    assert at[math.inf] > at[4.0] + 0.3
    assert line(shown(figure)[0], *zip(at.values(), means, strict=True))
    assert "95 % confidence interval over 3 seeds" in caption_of(settings)


def test_utility_names_data_and_partition_in_its_title(quickstart: list[Row]) -> None:
    figure = utility(SeedGroups.of(quickstart))
    assert figure is not None
    assert figure.get_suptitle() == "digits · dirichlet · 10 clients"
    assert titles(figure) == ["α = 0.1", "α = 1"]


def test_near_references_are_lines_in_the_legend(quickstart: list[Row]) -> None:
    figure = utility(SeedGroups.of(quickstart))
    assert {0.953, 0.71, 0.1} <= set(levels(shown(figure)[1]))
    assert legend(figure)[2:] == ["fedavg-cvae (not private)", "ceiling", "local-only", "chance"]


def test_far_references_are_written_at_the_edge() -> None:
    rows = [
        make_row(
            cell_id=f"{score}",
            label=f"{score}",
            balanced_accuracy=score,
            local_only_balanced_accuracy=0.51,
            ceiling_balanced_accuracy=0.9,
            chance=0.1,
        )
        for score in (0.5, 0.52)
    ]
    figure = utility(SeedGroups.of(rows))
    (axes,) = shown(figure)
    assert written(axes) == ["↓ chance 0.100", "↑ ceiling 0.900"]
    assert legend(figure)[2:] == ["local-only"]
    low, high = axes.get_ylim()
    assert 0.4 < low < high < 0.6


def test_methods_at_one_epsilon_stand_side_by_side() -> None:
    rows = [
        make_row(cell_id=f"{label}{epsilon}", label=label, epsilon_target=epsilon)
        for label in ("a", "b", "c")
        for epsilon in (1.0, 2.0)
    ]
    (axes,) = shown(utility(SeedGroups.of(rows)))
    places = [drawn.get_xdata()[0] for drawn in axes.lines if len(drawn.get_xdata()) == 2]
    assert places[0] < places[1] < places[2]
    assert max(map(abs, places[:3])) < 0.03


def test_methods_at_a_single_epsilon_stand_side_by_side() -> None:
    rows = [make_row(cell_id=label, label=label) for label in ("a", "b")]
    (axes,) = shown(utility(SeedGroups.of(rows)))
    first, second = [drawn.get_xdata()[0] for drawn in axes.lines if drawn.get_marker() != "None"]
    assert first < 0 < second


def test_axis_is_broken_before_infinity(quickstart: list[Row]) -> None:
    (axes, _) = shown(utility(SeedGroups.of(quickstart)))
    at, _ = epsilon_axis(pd.Series([1.0, 4.0, math.inf]))
    (mark,) = [drawn.get_xdata() for drawn in axes.lines if list(drawn.get_ydata()) == [0, 0]]
    assert all(at[4.0] < place < at[math.inf] for place in mark)


def test_levels_are_drawn_where_the_partition_has_no_alpha() -> None:
    row = make_row(
        scheme="disjoint",
        alpha=None,
        ceiling_balanced_accuracy=0.51,
        local_only_balanced_accuracy=0.49,
    )
    assert {0.51, 0.49} <= set(levels(shown(utility(SeedGroups.of([row])))[0]))


def test_method_labelled_as_a_reference_has_a_line_of_its_own() -> None:
    method = make_row(
        label="local-only",
        epsilon_target=None,
        yields="classifier",
        balanced_accuracy=0.33,
        local_only_balanced_accuracy=0.34,
    )
    figure = utility(SeedGroups.of([method]))
    drawn = levels(shown(figure)[0])
    assert drawn[0.33].get_color() != drawn[0.34].get_color()
    names = legend(figure)
    assert "local-only (classifier, not private)" in names
    assert "local-only (reference)" in names


@pytest.mark.parametrize(
    "measure",
    [name for name, each in MEASURES.items() if each.references],
)
def test_every_reference_of_a_measure_can_be_drawn(measure: str) -> None:
    references = {column: 0.5 for _, column in MEASURES[measure].references}
    figure = utility(
        SeedGroups.of([make_row(**{measure: 0.5} | references)]),
        measure,
    )
    for name, _ in MEASURES[measure].references:
        assert name in legend(figure)


def test_shipped_methods_have_distinct_fixed_looks() -> None:
    assert len(set(FIXED_LOOKS.values())) == len(FIXED_LOOKS)
    shipped = {name for name in known() if lookup(name).__module__.split(".")[0] in SHIPPED}
    assert shipped - set(FIXED_LOOKS) == set()


def test_look_does_not_depend_on_other_methods_without_a_collision() -> None:
    alone = look_numbers(["mine"])["mine"]
    assert look_numbers(["fedhypevae", "dp-gaussian", "mine"])["mine"] == alone
    assert look_numbers(["mine", "fedhypevae"])["fedhypevae"] == FIXED_LOOKS["fedhypevae"]


def test_a_colliding_method_gets_the_next_free_colour() -> None:
    first, second = look_numbers(["ab", "ba"]).values()
    assert second[0] == (first[0] + 1) % 10


def test_methods_beyond_the_colours_differ_in_markers() -> None:
    found = look_numbers([f"method {number}" for number in range(15)])
    assert len(set(found.values())) == 15


def test_line_is_dashed_if_its_claim_is_no_theorem() -> None:
    rows = [
        make_row(cell_id=claim, label=claim, claim=claim)
        for claim in ("proved", "stated", "heuristic")
    ]
    found = looks(
        SeedGroups.of(
            [
                *rows,
                make_row(
                    cell_id="f",
                    label="found",
                    check="failed",
                ),
            ]
        ).facts
    )
    styles = {label: look.style["linestyle"] for label, look in found.items()}
    assert styles["proved"] == "-"
    assert styles["stated"] == styles["heuristic"] == styles["found"] != "-"
    assert len({look.style["color"] for look in found.values()}) == 4


def test_audited_bound_has_a_tick_and_bars_are_clipped() -> None:
    scores = (0.6, 0.99, 1.0)
    rows = [
        make_row(
            cell_id=f"{seed}",
            seed=seed,
            balanced_accuracy=score,
            audit_epsilon_lower=0.5,
        )
        for seed, score in enumerate(scores)
    ]
    (axes,) = shown(utility(SeedGroups.of(rows)))
    assert line(axes, (math.log10(0.5), np.mean(scores)))
    ends = [
        segment[:, 1].max()
        for collection in axes.collections
        for segment in collection.get_segments()
    ]
    assert max(ends) == 1.0


@pytest.mark.parametrize("draw", [utility, fidelity, communication])
def test_without_finished_results_there_is_no_figure(draw: Callable[..., Any]) -> None:
    assert draw(SeedGroups.of([make_failed()])) is None


@pytest.mark.parametrize("draw", [fidelity, communication])
def test_without_scores_or_costs_to_compare_there_is_no_figure(draw: Callable[..., Any]) -> None:
    assert draw(SeedGroups.of([make_row()])) is None


def test_without_clients_rounds_or_partitions_there_is_no_figure() -> None:
    settings = SeedGroups.of([make_row()])
    assert sites(settings, pd.DataFrame()) is None
    assert diagnostics(settings, round_frame(settings, [])) is None
    assert partitions([]) is None


def test_partitions_of_the_first_seed_are_drawn() -> None:
    matrices = [matrix(alpha=alpha, seed=seed) for alpha in (0.1, 1.0) for seed in (0, 1)]
    assert len(shown(partitions(matrices))) == 2


def test_fidelity_has_a_panel_per_measure_and_place() -> None:
    scores = {
        "frechet_distance": 1.0,
        "squared_mmd": 0.2,
        "density": 0.9,
        "coverage": 0.8,
        "real_or_synthetic": 0.6,
    }
    places = [(alpha, epsilon) for alpha in (0.1, 1.0) for epsilon in (1.0, 8.0)]
    figure = fidelity(
        SeedGroups.of(
            [
                make_row(
                    cell_id=f"{each}",
                    alpha=each[0],
                    epsilon_target=each[1],
                    **scores,
                )
                for each in places
            ]
        )
    )
    words = [" ".join(title.split()) for title in titles(figure)]
    ideals = {
        "frechet_distance": " (lower is better)",
        "squared_mmd": " (lower is better)",
        "density": " (real data has 1)",
        "coverage": " (higher is better)",
        "real_or_synthetic": "",
    }
    assert words == [MEASURES[name].title + ideal for name, ideal in ideals.items()] * 2
    assert [axes.get_ylabel() for axes in shown(figure)[::5]] == ["α = 0.1", "α = 1"]


def test_heat_map_names_class_client_and_seed() -> None:
    (axes,) = shown(partitions([matrix(seed=3)]))
    assert axes.get_xlabel() == "client"
    assert axes.get_ylabel() == "class"
    (title,) = titles(axes.figure)
    assert " ".join(title.split()).endswith("seed 3")


def test_communication_is_per_client_in_megabytes() -> None:
    rows = [
        make_row(
            cell_id=f"{e}", epsilon_target=e, uplink_bytes=30_000_000, downlink_bytes=10_000_000
        )
        for e in (1.0, 4.0)
    ]
    rows.append(
        make_row(
            cell_id="o",
            label="open",
            epsilon_target=None,
            uplink_bytes=10_000_000,
            downlink_bytes=0,
        )
    )
    figure = communication(SeedGroups.of(rows))
    assert titles(figure) == ["ε = 1", "ε = 4"]
    assert all(line(axes, (4.0, 0.5)) and line(axes, (1.0, 0.5)) for axes in shown(figure))


def test_sites_draws_one_dot_per_client() -> None:
    own = [
        ("a", "north", 0.4, 0.5),
        ("b", "north", 0.6, 0.5),
        ("a", "south", 0.7, 0.5),
        ("b", "south", 0.7, 0.5),
        ("a", "west", None, None),
    ]
    clients = pd.DataFrame(
        own, columns=["cell_id", "name", "own_balanced_accuracy", "shared_balanced_accuracy"]
    )
    (axes,) = shown(
        sites(
            SeedGroups.of([make_row(cell_id="a"), make_row(cell_id="b", seed=1)]),
            clients,
        )
    )
    assert line(axes, (0.5, 0.5), (0.5, 0.7))


def scan(label: str = "dp-cvae", **params: list[Any]) -> list[Row]:
    """Two seeds of every value of one parameter, labelled as a grid does."""
    ((name, values),) = params.items()
    return [
        make_row(
            cell_id=f"{label}{value}{seed}",
            label=f"{label} {name}={value}",
            algorithm=label,
            seed=seed,
            params={name: value, "latent": 4},
            balanced_accuracy=0.5 + 0.01 * at + 0.001 * seed,
            uplink_bytes=1000 * (at + 1),
            downlink_bytes=0,
            train_seconds=2.0 * (at + 1),
        )
        for at, value in enumerate(values)
        for seed in (0, 1)
    ]


def test_scanned_parameter_or_cost_is_the_axis() -> None:
    figure = over_parameter(
        [*scan(rounds=[80, 5, 20]), *scan("dp-gmm", rounds=[5, 20])], "rounds", "balanced_accuracy"
    )
    assert legend(figure) == ["dp-cvae", "dp-gmm"]
    assert line(shown(figure)[0], (5, 0.5105), (20, 0.5205), (80, 0.5005))
    for over, places in {"bytes": [1e-4, 2e-4], "seconds": [2.0, 4.0]}.items():
        (axes,) = shown(
            over_parameter(
                scan(rounds=[5, 20]),
                over,
                "balanced_accuracy",
            )
        )
        assert line(axes, *zip(places, (0.5005, 0.5105), strict=True))
    figure = over_parameter(
        scan(observation=["shared", "own"]), "observation", "balanced_accuracy", width=3.35
    )
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["own", "shared"]
    assert figure.get_figwidth() == 3.35
    with pytest.raises(
        UserError,
        match=r"over latent: no method has this score at two values of latent.*; scan a parameter",
    ):
        over_parameter(scan(rounds=[5, 20]), "latent", "balanced_accuracy")
    with pytest.raises(UserError, match="did you mean 'rounds'"):
        over_parameter(scan(rounds=[5, 20]), "round", "balanced_accuracy")


def test_a_whole_number_in_a_scan_of_shares_is_on_its_line() -> None:
    rows = [
        replace(
            row,
            values={**row.values, "params": {"clip": float(row.params["clip"])}},
        )
        for row in scan(clip=[0, 0.5])
    ]
    figure = over_parameter(rows, "clip", "balanced_accuracy")
    assert line(shown(figure)[0], (0.0, 0.5005), (0.5, 0.5105))


def test_diagnostics_are_means_of_the_rounds() -> None:
    settings = SeedGroups.of(
        [
            make_row(
                cell_id=f"{epsilon}",
                epsilon_target=epsilon,
            )
            for epsilon in (1.0, 4.0)
        ]
    )
    records = [
        *make_rounds("1.0", kl=2.0),
        *make_rounds("4.0", kl=[1.0] * 7 + [math.inf]),
        *make_rounds("other"),
    ]
    rounds = round_frame(settings, records)
    assert sorted(rounds["cell_id"].unique()) == ["1.0", "4.0"]
    assert rounds.query("cell_id == '4.0'")["kl_lost"].tolist() == [False] * 7 + [True]
    assert rounds["noise_to_signal"].eq(2.0).all()
    kl = next(
        axes for axes in shown(diagnostics(settings, rounds)) if axes.get_ylabel().startswith("KL")
    )
    assert line(kl, *((t, 2.0) for t in range(8)))
    assert line(kl, *((t, 1.0) for t in range(7)))


def matrix_of_many_classes(classes: int) -> LabelMatrix:
    """The matrix of 1,000 clients with one example of each class."""
    names = tuple(map(str, range(classes)))
    counts = np.ones((1000, classes), np.int64)
    return LabelMatrix("photos", "dirichlet", 0.3, 1000, 0, "0" * 16, counts, names)


def test_heat_map_of_many_classes_names_few_of_them() -> None:
    figure = partitions([matrix_of_many_classes(1000)])
    (axes,) = shown(figure)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[:3] == ["0", "17", "34"]
    assert len(names) == 59
    assert axes.images[0].get_array().shape == (59, 200)


def test_heat_map_of_many_classes_says_which_it_shows() -> None:
    (title,) = titles(partitions([matrix_of_many_classes(1000)]))
    words = " ".join(title.split())
    assert words.endswith("(the first 200 clients) (one in 17 of the 1000 classes)")


def test_heat_map_of_many_classes_fits_a_page() -> None:
    figure = partitions([matrix_of_many_classes(1000)])
    assert figure is not None
    assert figure.get_figheight() < 15


def matrix(clients: int = 5, seed: int = 0, alpha: float = 0.3) -> LabelMatrix:
    y = np.random.default_rng(0).integers(0, 4, 400)
    partition = make_partition(
        y,
        spec=PartitionSpec(scheme="dirichlet"),
        alpha=alpha,
        clients=clients,
        seed=seed,
        columns={},
    )
    names = ("liver", "kidney $1$", "lung", "spleen")
    return LabelMatrix(
        "ct",
        "dirichlet",
        alpha,
        clients,
        seed,
        partition.fingerprint,
        partition.label_counts,
        names,
    )


def test_a_figure_is_written_as_the_same_bytes_again(tmp_path: Path) -> None:
    settings = SeedGroups.of(scan(rounds=[5, 20]))
    svgs = [
        save_figure(
            figure_of(settings),
            tmp_path / f"{name}.png",
        )
        for name in "ab"
    ]
    assert svgs[0] == svgs[1] == (tmp_path / "a.svg").read_bytes()
    assert imread(tmp_path / "a.png").shape[1] == 1800


def test_a_pdf_is_the_same_again_and_has_text_in_fonts(tmp_path: Path) -> None:
    settings = SeedGroups.of(scan(rounds=[5, 20]))
    paths = [
        save_pdf(
            figure_of(settings, inches("column")),
            tmp_path / f"{name}.pdf",
        )
        for name in "ab"
    ]
    pdf = paths[0].read_bytes()
    assert pdf == paths[1].read_bytes()
    assert b"/CIDFontType2" in pdf  # an embedded font, TrueType as fonttype 42 has it
    assert b"/MediaBox [ 0 0 241.2 " in pdf


@pytest.mark.parametrize("width", ["wide", "0", "nan", "100"])
def test_an_unknown_width_is_an_error(width: str) -> None:
    with pytest.raises(
        UserError,
        match=f"width {width}: is not a width; give column, page, or",
    ):
        inches(width)


# --- published numbers ---

NAME = "DP-CVAE (published, not run here: Author 2025, Table 2)"
"""The name of a published number in a legend."""


def figure_with(*numbers: Published, measure: str = "balanced_accuracy") -> Any:
    """Return the curve of one private method beside published numbers."""
    rows = [make_row(cell_id=f"{epsilon}", epsilon_target=epsilon) for epsilon in (1.0, 8.0)]
    return utility(SeedGroups.of(rows, published=numbers), measure)


def hollow(figure: Any) -> list[Any]:
    """Return the marks of published numbers in the first panel."""
    return [mark for mark in shown(figure)[0].lines if mark.get_color() == INK]


def test_published_number_is_a_hollow_mark_at_its_epsilon() -> None:
    figure = figure_with(make_published())
    (mark,) = hollow(figure)
    assert mark.get_linestyle() == "None"
    assert mark.get_markerfacecolor() == "none"
    assert line(shown(figure)[0], (0.0, 0.91))


def test_legend_cites_a_published_number() -> None:
    assert legend(figure_with(make_published()))[1] == NAME


def test_curve_shows_only_published_numbers_of_its_measure() -> None:
    number = make_published(measure="accuracy")
    assert hollow(figure_with(number)) == []
    assert len(hollow(figure_with(number, measure="accuracy"))) == 1


def test_curve_shows_no_published_number_of_another_data_set() -> None:
    assert hollow(figure_with(make_published(dataset="PACS"))) == []


def test_published_epsilon_that_nothing_ran_at_has_a_tick() -> None:
    figure = figure_with(make_published(epsilon=3))
    ticks = [text.get_text() for text in shown(figure)[0].get_xticklabels()]
    assert ticks == ["1", "3", "8"]


def test_axis_covers_published_numbers() -> None:
    _, high = shown(figure_with(make_published()))[0].get_ylim()
    assert high > 0.91


def test_published_numbers_have_marks_of_their_own() -> None:
    figure = figure_with(make_published(), make_published(label="FedX"))
    first, second = hollow(figure)
    assert first.get_marker() != second.get_marker()


def test_long_citation_takes_several_lines_of_a_legend() -> None:
    figure = figure_with(make_published(source="A long title of a paper, " * 5))
    assert max(map(len, legend(figure)[1].splitlines())) <= 60


def test_curve_without_results_shows_no_published_number() -> None:
    assert utility(SeedGroups.of([], published=[make_published()])) is None
