from dataclasses import replace

import numpy as np
import pytest
from cells import quick, small_cells
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import ran

from fedsim.data.embeddings import Embeddings
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


def rows(count: int, seed: int, moved: float = 0.0, scale: float = 1.0) -> Labelled:
    """Gaussian classes, each about an axis of its own; ``moved`` off their place, ``scale`` times
    as wide.
    """
    rng = np.random.default_rng(seed)
    y = np.arange(count) % CLASSES
    x = scale * rng.standard_normal((count, DIM))
    x[np.arange(count), y] += 3
    x[:, -1] += moved
    return Labelled(x.astype(np.float32), y)


def test_rows_of_the_same_kind_are_near_and_cannot_be_told_apart() -> None:
    found = fidelity(rows(900, 0), rows(900, 1), 0.1)
    assert found["frechet_distance"] < 0.5
    assert abs(found["squared_mmd"]) < 0.005
    assert found["density"] == pytest.approx(1.0, abs=0.15)
    assert found["coverage"] > 0.9
    assert found["real_or_synthetic"] == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(("moved", "scale"), [(2.0, 1.0), (0.0, 0.2), (0.0, 3.0)])
def test_rows_that_are_moved_collapsed_or_blown_up_are_seen_by_every_number(
    moved: float, scale: float
) -> None:
    same, other = (
        fidelity(rows(600, 0, *how), rows(600, 1), 0.1) for how in ((0.0, 1.0), (moved, scale))
    )
    assert other["frechet_distance"] > 2 * same["frechet_distance"]
    assert other["squared_mmd"] > same["squared_mmd"] + 0.01
    assert other["coverage"] < same["coverage"] - 0.05


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(6, 40), st.integers(1, 40))
def test_the_frechet_distance_is_none_to_itself_and_never_negative(
    seed: int, real: int, made: int
) -> None:
    rng = np.random.default_rng(seed)
    one = rng.standard_normal((real, 5))
    two = rng.standard_normal((made, 5)) * 3
    assert frechet(one, one) == pytest.approx(0.0, abs=1e-9)
    assert frechet(two, one) >= -1e-9
    assert 0 <= density_and_coverage(two, one)[1] <= 1
    assert squared_mmd(one, one) <= 1e-9


def test_density_is_a_share_of_made_rows_and_coverage_one_of_real_rows() -> None:
    """Of six rows on a line the fifth neighbour is the farthest: the neighbourhoods reach 5, 4, 3,
    3, 4 and 5.
    """
    real = np.arange(6.0)[:, None]
    # 5.5 lies in those of 3, 4 and 5
    assert density_and_coverage(np.array([[5.5], [100.0], [200.0]]), real) == (3 / (5 * 3), 3 / 6)
    assert density_and_coverage(np.array([[2.5]]), real) == (6 / 5, 1)


def test_squared_mmd_is_unbiased_with_kernels_of_median_width_and_wider() -> None:
    real = np.array([[0.0], [1.0], [3.0]])
    made = np.array([[0.0], [3.0]])

    def kernel(*distances: float) -> float:
        return float(np.mean([np.exp(-np.square(distances) / (4 * wider)) for wider in WIDTHS]))

    right = kernel(3) + kernel(1, 2, 3) - 2 * kernel(0, 1, 3, 3, 2, 0)
    assert squared_mmd(made, real) == pytest.approx(right)


def test_classes_of_too_few_test_rows_are_told() -> None:
    x = np.eye(40, dtype=np.float32)
    y = np.repeat([0, 1, 0, 1], [10, 10, 14, 6])
    data = Embeddings.from_arrays("few", x, y, np.repeat([0, 2], 20))
    assert left_out(data) is None
    fewer = replace(data, x_test=data.x_test[:-1], y_test=data.y_test[:-1])
    assert (
        left_out(fewer)
        == "fidelity on few is over 1 of its 2 classes: the others have 5 test rows or fewer"
    )


@pytest.mark.parametrize("name", ["knn", "mlp"])
def test_evaluator_weighs_classes_alike_and_reads_each_test_row_alone(
    name: str,
) -> None:
    made = rows(600, 0)
    real = rows(300, 1)
    (score,) = EVALUATORS[name](made, real, 0.1).values()
    assert 0.75 < score <= 1
    assert EVALUATORS[name](made, real, 0.1) == {f"{name}_balanced_accuracy": score}
    # rows far away, of a class that none was made of
    with_strangers = Labelled(
        np.concatenate([real.x, np.full((90, real.x.shape[1]), 50, np.float32)]),
        np.append(real.y, [CLASSES] * 90),
    )
    (found,) = EVALUATORS[name](made, with_strangers, 0.1).values()
    assert found == pytest.approx(score * CLASSES / (CLASSES + 1))


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (
            {},
            {
                "knn_balanced_accuracy",
                "frechet_distance",
                "squared_mmd",
                "density",
                "coverage",
                "real_or_synthetic",
            },
        ),
        ({"evaluators": "mlp"}, {"mlp_balanced_accuracy"}),
        ({"evaluators": []}, set()),
    ],
)
def test_a_cell_has_the_evaluators_that_its_grid_asks_for(
    asked: dict[str, object], named: set[str]
) -> None:
    prepared = small_cells(quick("dp-gaussian"), epsilon=8.0, evaluation={"per_class": 20, **asked})
    evaluation = ran(prepared, prepared.trials[0])[1]
    linear = {name for name, measure in MEASURES.items() if measure.of == "all" and measure.score}
    assert evaluation.scores.keys() == linear | named | {"synthetic_norm"}
