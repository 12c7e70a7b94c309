"""The algorithms without a generator: what they yield, and how it is evaluated."""

from typing import Any

import numpy as np
import pytest
import torch
from cells import one_cell, quick, score_probe, small_cells
from rows import ran

from fedsim.data.embeddings import Embeddings
from fedsim.evaluation.scores import Scores, ceiling, local_only
from fedsim.methods import Seeds
from fedsim.training.rounds import to_the_end, train
from fedsim.training.trial import Trial, local_pool

C = 0.3


def outcome(name: str) -> tuple[Scores, int, Trial, Embeddings]:
    """The scores of one small cell, the bytes that its clients sent, its trial and its data."""
    prepared = small_cells(quick(name), epsilon=8.0, evaluation={"probe_c": C})
    (trial,), (data,) = prepared.trials, prepared.data.values()
    ended, evaluation = ran(prepared, trial)
    return evaluation.scores, ended.uplink_bytes, trial, data


def test_centralised_is_the_probe_of_all_rows_and_no_better_than_the_ceiling() -> None:
    scores, sent, trial, data = outcome("centralised")
    rows = np.concatenate(trial.partition.rows)
    assert scores == score_probe(
        data.x_train[rows], data.y_train[rows], data.x_test, data.y_test, C
    )
    assert scores.balanced_accuracy <= ceiling(data, C).balanced_accuracy + 1e-3
    assert sent == data.x_train.nbytes + data.y_train.nbytes


def test_local_only_is_the_floor_and_sends_nothing() -> None:
    scores, sent, trial, data = outcome("local-only")
    alone = [
        score_probe(data.x_train[rows], data.y_train[rows], data.x_test, data.y_test, C)
        for rows in trial.partition.rows
    ]
    assert scores.balanced_accuracy == np.mean([each.balanced_accuracy for each in alone])
    # the reference takes the best strength, and weighs a client's classes alike
    assert (
        scores.balanced_accuracy <= local_only(data, trial.partition, trial.cell.partition, C).mean
    )
    assert sent == 0


def test_fedlambda_holds_one_classifier_a_client_and_fedavg_one_for_all() -> None:
    trial, data, algorithm = one_cell(quick("fedlambda"), epsilon=8.0)
    _, end = to_the_end(train(algorithm, local_pool(trial, data), trial.plan, Seeds(0)))
    made: Any = end.made
    x = torch.randn(5, 64)
    each = torch.stack([made.of_client(client).probabilities(x) for client in range(4)])
    assert each.sum(-1) == pytest.approx(torch.ones(4, 5))
    assert not torch.allclose(each[0], each[1])
    for client, classifier in enumerate(made.classifiers):
        weight = float(end.state[f"server.tensors.lambda.{client}"])
        assert classifier.weight == pytest.approx(weight)
    torch.testing.assert_close(made.probabilities(x), each.mean(0))
