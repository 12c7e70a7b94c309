"""The algorithms without a generator: what they yield, and how it is judged."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from cells import quick, score_probe, small_cells
from rows import ran

from fedsim.evaluation.scores import Scores, ceiling, local_only
from fedsim.methods import Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.rounds import Trained, to_the_end, train
from fedsim.training.trial import local_pool

C = 0.3


class Ended(NamedTuple):
    """Scores of a cell, and what its clients sent."""

    scores: Scores
    uplink_bytes: int


def outcome(entry: dict[str, Any], **keys: Any) -> tuple[Ended, Any, Any]:
    """How one small cell ended, its trial and its data."""
    prepared = small_cells(entry, **{"epsilon": 8.0, **keys})
    (trial,), (data,) = prepared.trials, prepared.data.values()
    ended, judgement = ran(prepared, trial)
    return Ended(judgement.scores, ended.uplink_bytes), trial, data


def trained(entry: dict[str, Any], **keys: Any) -> Trained:
    prepared = small_cells(entry, **{"epsilon": 8.0, **keys})
    (trial,), (data,) = prepared.trials, prepared.data.values()
    steps = train(build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task), local_pool(trial, data), trial.plan, Seeds(0))
    return to_the_end(steps)[1]


def test_centralised_is_the_probe_of_all_rows_and_no_better_than_the_ceiling() -> None:
    end, trial, data = outcome(quick("centralised"), evaluation={"probe_c": C})
    rows = np.concatenate(trial.partition.rows)
    assert end.scores == score_probe(data.x_train[rows], data.y_train[rows], data.x_test, data.y_test, C)
    assert end.scores.balanced_accuracy <= ceiling(data, C).balanced_accuracy + 1e-3
    assert end.uplink_bytes == data.x_train.nbytes + data.y_train.nbytes


def test_local_only_is_the_floor_and_sends_nothing() -> None:
    end, trial, data = outcome(quick("local-only"), evaluation={"probe_c": C})
    alone = [score_probe(data.x_train[rows], data.y_train[rows], data.x_test, data.y_test, C) for rows in trial.partition.rows]
    assert end.scores.balanced_accuracy == np.mean([each.balanced_accuracy for each in alone])
    # the reference takes the best strength, and weighs a client's classes alike
    assert end.scores.balanced_accuracy <= local_only(data, trial.partition, trial.cell.partition, C).mean
    assert end.uplink_bytes == 0


def test_fedlambda_holds_one_classifier_a_client_and_fedavg_one_for_all() -> None:
    end = trained(quick("fedlambda"))
    made: Any = end.made
    x = torch.randn(5, 64)
    each = torch.stack([made.of_client(client).probabilities(x) for client in range(4)])
    assert each.sum(-1) == pytest.approx(torch.ones(4, 5))
    assert not torch.allclose(each[0], each[1])
    for client, tensors in enumerate(made.own):
        assert tensors.weight == pytest.approx(float(end.state[f"server.tensors.lambda.{client}"]))
    torch.testing.assert_close(made.probabilities(x), each.mean(0))
