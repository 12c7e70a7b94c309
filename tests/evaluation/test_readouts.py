import numpy as np
import pytest
from cells import quick, small_cells
from rows import ran
from test_fidelity import CLASSES, rows

from fedsim.evaluation.measures import MEASURES
from fedsim.evaluation.readouts import READOUTS, Labelled


@pytest.mark.parametrize("name", ["knn", "mlp"])
def test_a_readout_learns_classes_that_are_apart(name: str) -> None:
    (score,) = READOUTS[name](rows(600, 0), rows(300, 1), 0.1).values()
    assert 0.75 < score <= 1
    (again,) = READOUTS[name](rows(600, 0), rows(300, 1), 0.1).values()
    assert again == score


@pytest.mark.parametrize("name", ["knn", "mlp"])
def test_a_readout_weighs_classes_alike_and_test_rows_change_nothing_of_how_others_are_read(name: str) -> None:
    made, real = rows(600, 0), rows(300, 1)
    (score,) = READOUTS[name](made, real, 0.1).values()
    # rows far away, of a class that none was made of
    with_strangers = Labelled(np.concatenate([real.x, np.full((90, real.x.shape[1]), 50, np.float32)]), np.append(real.y, [CLASSES] * 90))
    (found,) = READOUTS[name](made, with_strangers, 0.1).values()
    assert found == pytest.approx(score * CLASSES / (CLASSES + 1))


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({}, {"knn_balanced_accuracy", "frechet_distance", "squared_mmd", "density", "coverage", "real_or_synthetic"}),
        ({"readouts": "mlp"}, {"mlp_balanced_accuracy"}),
        ({"readouts": []}, set()),
    ],
)
def test_a_cell_has_the_readouts_that_its_grid_asks_for(asked: dict[str, object], named: set[str]) -> None:
    prepared = small_cells(quick("dp-gaussian"), epsilon=8.0, evaluation={"per_class": 20, **asked})
    judgement = ran(prepared, prepared.trials[0])[1]
    linear = {name for name, measure in MEASURES.items() if measure.of == "all" and measure.score}
    assert judgement.scores.keys() == linear | named | {"synthetic_norm"}
