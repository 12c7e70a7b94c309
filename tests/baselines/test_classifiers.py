"""The algorithms without a generator: their products, and how these are evaluated."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from cells import one_cell, quick, score_probe, small_cells
from rows import ran

from baselines.dp_feature_covariance import DPFeatureCovarianceParams
from fedsim.data.embeddings import Embeddings
from fedsim.evaluation.scores import Scores, ceiling, local_only
from fedsim.methods import Seeds
from fedsim.training.rounds import to_the_end, train
from fedsim.training.trial import Trial, local_pool

C = 0.3


@dataclass
class Evaluated:
    """One small cell and its evaluation.

    Attributes:
        trial: the cell.
        data: its data.
        scores: its scores.
        sent: the number of bytes that its clients sent.
    """

    trial: Trial
    data: Embeddings
    scores: Scores
    sent: int

    def score_probe(self, rows: np.ndarray) -> Scores:
        """The scores of the evaluation's probe on some training rows."""
        data = self.data
        return score_probe(
            data.x_train[rows],
            data.y_train[rows],
            data.x_test,
            data.y_test,
            C,
        )


def evaluated(name: str) -> Evaluated:
    prepared = small_cells(
        quick(name),
        epsilon=8.0,
        evaluation={"probe_c": C},
    )
    (trial,) = prepared.trials
    (data,) = prepared.data.values()
    outcome, evaluation = ran(prepared, trial)
    return Evaluated(
        trial,
        data,
        evaluation.scores,
        outcome.uplink_bytes,
    )


def test_centralised_is_the_probe_of_all_rows() -> None:
    cell = evaluated("centralised")
    best = ceiling(cell.data, C).balanced_accuracy
    assert cell.scores == cell.score_probe(np.concatenate(cell.trial.partition.rows))
    assert cell.scores.balanced_accuracy <= best + 1e-3
    assert cell.sent == cell.data.x_train.nbytes + cell.data.y_train.nbytes


def test_local_only_is_the_floor_and_sends_nothing() -> None:
    cell = evaluated("local-only")
    partition = cell.trial.partition
    alone = [cell.score_probe(rows).balanced_accuracy for rows in partition.rows]
    reference = local_only(
        cell.data,
        partition,
        cell.trial.cell.partition,
        C,
    )
    assert cell.scores.balanced_accuracy == np.mean(alone)
    # The reference has the best strength, and weighs a client's classes alike.
    assert cell.scores.balanced_accuracy <= reference.mean
    assert cell.sent == 0


def test_fedlambda_has_one_classifier_per_client() -> None:
    trial, data, algorithm = one_cell(
        quick("fedlambda"),
        epsilon=8.0,
    )
    _, end = to_the_end(train(algorithm, local_pool(trial, data), trial.plan, Seeds(0)))
    product: Any = end.made
    x = torch.randn(5, 64)
    own = torch.stack([product.of_client(client).probabilities(x) for client in range(4)])
    assert own.sum(-1) == pytest.approx(torch.ones(4, 5))
    assert not torch.allclose(own[0], own[1])
    torch.testing.assert_close(
        product.probabilities(x),
        own.mean(0),
    )
    for client, classifier in enumerate(product.classifiers):
        weight = float(end.state[f"server.tensors.lambda.{client}"])
        assert classifier.weight == pytest.approx(weight)


def test_shares_that_leave_nothing_for_the_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"add up to 1\.1"):
        DPFeatureCovarianceParams(precondition=0.5, second_share=0.6)
