from dataclasses import replace

import numpy as np
import pytest
from cells import quick, small_cells
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import ran

from fedsim.data.embeddings import Embeddings
from fedsim.evaluation import evaluators
from fedsim.evaluation.evaluators import (
    EVALUATORS,
    WIDTHS,
    Labelled,
    density_and_coverage,
    fidelity,
    frechet,
    left_out,
    squared_mmd,
)
from fedsim.evaluation.measures import MEASURES

DIM = 12
CLASSES = 3


def rows(
    count: int,
    seed: int,
    moved: float = 0.0,
    scale: float = 1.0,
) -> Labelled:
    """Gaussian classes, each about its own axis, moved off their place and stretched."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % CLASSES
    x = scale * rng.standard_normal((count, DIM))
    x[np.arange(count), y] += 3
    x[:, -1] += moved
    return Labelled(x.astype(np.float32), y)


def test_rows_of_the_same_distribution_cannot_be_distinguished() -> None:
    scores = fidelity(rows(900, 0), rows(900, 1), 0.1)
    assert scores["frechet_distance"] < 0.5
    assert abs(scores["squared_mmd"]) < 0.005
    assert scores["density"] == pytest.approx(1.0, abs=0.15)
    assert scores["coverage"] > 0.9
    assert scores["real_or_synthetic"] == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
    ("moved", "scale"),
    [(2.0, 1.0), (0.0, 0.2), (0.0, 3.0)],
    ids=["moved", "collapsed", "blown up"],
)
def test_fidelity_is_worse_for_another_distribution(
    moved: float,
    scale: float,
) -> None:
    same = fidelity(rows(600, 0), rows(600, 1), 0.1)
    other = fidelity(rows(600, 0, moved, scale), rows(600, 1), 0.1)
    assert other["frechet_distance"] > 2 * same["frechet_distance"]
    assert other["squared_mmd"] > same["squared_mmd"] + 0.01
    assert other["coverage"] < same["coverage"] - 0.05


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(6, 40), st.integers(1, 40))
def test_fidelity_measures_stay_within_their_ranges(
    seed: int, real_count: int, synthetic_count: int
) -> None:
    rng = np.random.default_rng(seed)
    real = rng.standard_normal((real_count, 5))
    synthetic = rng.standard_normal((synthetic_count, 5)) * 3
    _, coverage = density_and_coverage(synthetic, real)
    assert frechet(real, real) == pytest.approx(0.0, abs=1e-9)
    assert frechet(synthetic, real) >= -1e-9
    assert 0 <= coverage <= 1
    assert squared_mmd(real, real) <= 1e-9


@pytest.mark.parametrize(
    ("synthetic", "density", "coverage"),
    [([5.5, 100.0, 200.0], 3 / (5 * 3), 3 / 6), ([2.5], 6 / 5, 1)],
)
def test_density_and_coverage_of_six_rows_on_a_line(
    synthetic: list[float], density: float, coverage: float
) -> None:
    # The fifth neighbour of a row is the farthest: the neighbourhoods reach 5, 4, 3, 3, 4 and 5,
    # and 5.5 lies in those of 3, 4 and 5.
    real = np.arange(6.0)[:, None]
    assert density_and_coverage(np.array(synthetic)[:, None], real) == (density, coverage)


def test_squared_mmd_is_unbiased_over_kernels_of_three_widths() -> None:
    real = np.array([[0.0], [1.0], [3.0]])
    synthetic = np.array([[0.0], [3.0]])

    def kernel(*distances: float) -> float:
        squares = np.square(distances)
        return float(np.mean([np.exp(-squares / (4 * width)) for width in WIDTHS]))

    expected = kernel(3) + kernel(1, 2, 3) - 2 * kernel(0, 1, 3, 3, 2, 0)
    assert squared_mmd(synthetic, real) == pytest.approx(expected)


def test_classes_with_too_few_test_rows_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.eye(40, dtype=np.float32)
    y = np.repeat([0, 1, 0, 1], [10, 10, 14, 6])
    data = Embeddings.from_arrays(
        "few",
        x,
        y,
        np.repeat([0, 2], 20),
    )
    fewer = replace(
        data,
        x_test=data.x_test[:-1],
        y_test=data.y_test[:-1],
    )
    assert left_out(data) is None
    assert left_out(fewer) == (
        "fidelity on few is over 1 of its 2 classes: the others are scored on 5 test rows or fewer"
    )
    monkeypatch.setattr(evaluators, "MOST_TEST_ROWS", 10)
    assert "over 0 of its 2 classes" in (left_out(data) or "")


def test_a_class_with_one_synthetic_row_has_no_fidelity() -> None:
    real = rows(300, 1)
    whole = rows(300, 0)
    two_classes = Labelled(whole.x[whole.y < 2], whole.y[whole.y < 2])
    one_more = Labelled(
        np.concatenate([two_classes.x, whole.x[whole.y == 2][:1]]),
        np.append(two_classes.y, 2),
    )
    expected = fidelity(two_classes, real, 0.1)
    scores = fidelity(one_more, real, 0.1)
    for name in ("frechet_distance", "squared_mmd", "density", "coverage"):
        assert scores[name] == expected[name]


def test_neighbours_of_very_many_classes_include_every_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluators, "MOST_NEIGHBOURS", 4)
    y = np.repeat(np.arange(8), 10)
    distant = Labelled(np.eye(8, dtype=np.float32)[y], y)
    assert score_of("knn", distant, distant) == 1


def test_a_feature_that_hardly_varies_does_not_mislead_the_network() -> None:
    synthetic = rows(600, 0)
    real = rows(300, 1)
    expected = score_of("mlp", synthetic, real)
    synthetic.x[:, -1] *= 1e-5
    real.x[:, -1] *= 1e-3
    assert score_of("mlp", synthetic, real) == pytest.approx(expected, abs=0.1)


def score_of(
    name: str,
    synthetic: Labelled,
    real: Labelled,
) -> float:
    return EVALUATORS[name](synthetic, real, 0.1)[f"{name}_balanced_accuracy"]


@pytest.mark.parametrize("name", ["knn", "mlp"])
def test_evaluator_weighs_classes_alike(name: str) -> None:
    synthetic = rows(600, 0)
    real = rows(300, 1)
    score = score_of(name, synthetic, real)
    assert 0.75 < score <= 1
    assert score_of(name, synthetic, real) == score
    # Test rows of a class without synthetic rows, which lie far away.
    strangers = np.full((90, DIM), 50, np.float32)
    y = np.append(real.y, [CLASSES] * 90)
    with_strangers = Labelled(
        np.concatenate([real.x, strangers]),
        y,
    )
    expected = score * CLASSES / (CLASSES + 1)
    assert score_of(name, synthetic, with_strangers) == pytest.approx(expected)


FIDELITY = {
    "frechet_distance",
    "squared_mmd",
    "density",
    "coverage",
    "real_or_synthetic",
}


@pytest.mark.parametrize(
    ("keys", "measures"),
    [
        ({}, FIDELITY | {"knn_balanced_accuracy"}),
        ({"evaluators": "mlp"}, {"mlp_balanced_accuracy"}),
        ({"evaluators": []}, set()),
    ],
)
def test_a_cell_has_the_evaluators_that_its_grid_asks_for(
    keys: dict[str, object], measures: set[str]
) -> None:
    prepared = small_cells(
        quick("dp-gaussian"),
        epsilon=8.0,
        evaluation={"per_class": 20, **keys},
    )
    _, evaluation = ran(prepared, prepared.trials[0])
    linear = {name for name, measure in MEASURES.items() if measure.of == "all" and measure.score}
    assert evaluation.scores.keys() == linear | measures | {"synthetic_norm"}
