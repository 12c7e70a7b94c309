"""The algorithms without a generator: what they yield, and how it is judged."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from cells import quick, score_probe, small_cells
from rows import ran

from fedsim.evaluation.references import ceiling, local_only
from fedsim.evaluation.scores import Scores
from fedsim.methods.messages import Task
from fedsim.models.probe import fit_probe
from fedsim.seeds import Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.rounds import Trained, train
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
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def test_centralised_is_the_probe_of_all_rows_and_no_better_than_the_ceiling() -> None:
    end, trial, data = outcome(quick("centralised"), evaluation={"probe_c": C})
    rows = np.concatenate(trial.partition.rows)
    assert end.scores == score_probe(data.x_train[rows], data.y_train[rows], data.x_test, data.y_test, C)
    assert end.scores.balanced_accuracy <= ceiling(data, C).balanced_accuracy + 1e-3
    assert end.uplink_bytes == data.x_train.nbytes + data.y_train.nbytes


def test_centralised_leaves_classes_as_frequent_as_they_are() -> None:
    rng = np.random.default_rng(0)
    y = (np.arange(200) % 10 == 0).astype(np.int64)
    x = (rng.standard_normal((200, 3)) + y[:, None]).astype(np.float32)
    algorithm: Any = build_algorithm("centralised", {}, Task(3, 2, 2, probe_c=C))
    server = algorithm.initial_server(Seeds(0))
    rows = {f"{part}.{k}": torch.from_numpy(values[k * 100 :][:100]) for part, values in (("x", x), ("y", y)) for k in range(2)}
    algorithm.server_step(server, next(algorithm.schedule()), rows)
    np.testing.assert_array_equal(algorithm.classifier(server).probe.weight, fit_probe(x, y, C).weight)


def test_local_only_is_the_floor_and_sends_nothing() -> None:
    end, trial, data = outcome(quick("local-only"), evaluation={"probe_c": C})
    alone = [score_probe(data.x_train[rows], data.y_train[rows], data.x_test, data.y_test, C) for rows in trial.partition.rows]
    assert end.scores.balanced_accuracy == np.mean([each.balanced_accuracy for each in alone])
    # the reference takes the best strength, and weighs a client's classes alike
    assert end.scores.balanced_accuracy <= local_only(data, trial.partition, trial.cell.partition, C).mean
    assert end.uplink_bytes == 0


@pytest.mark.parametrize("name", ["fedavg-linear", "dp-fedavg-linear"])
def test_a_federated_classifier_learns(name: str) -> None:
    end, _, data = outcome(quick(name, rounds=15, local_steps=10, learning_rate=0.01), epsilon=float("inf"))
    assert end.scores.balanced_accuracy > 0.6
    assert end.uplink_bytes == 15 * 4 * 4 * (data.dim + 1) * data.classes


def test_a_strong_proximal_term_keeps_the_classifier_near_where_it_started() -> None:
    norms = []
    for mu in (0.0, 1.0, 100.0):
        made: Any = trained(quick("fedavg-linear", mu=mu)).made
        norms.append(float(made.weight.norm()))
    assert norms[0] > norms[1] > norms[2] > 0


def test_fedlambda_predicts_its_clients_rows_better_than_either_part() -> None:
    personal = {}
    for entry in ({"name": "local-only"}, *(quick(name, rounds=15, local_steps=10) for name in ("fedavg-linear", "fedlambda"))):
        name, judged = entry["name"], {"per_class": 10, "personal": "held-out"}
        end, _, _ = outcome(entry, alpha=0.3, evaluation=judged)
        assert "personal_weight" not in end.scores
        personal[name] = end.scores["personal_accuracy"]
    assert personal["fedlambda"] >= max(personal["local-only"], personal["fedavg-linear"]) - 0.01


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


def test_a_classifier_that_runs_on_several_actors_is_the_same() -> None:
    prepared = small_cells(quick("centralised"), quick("fedlambda"))
    for trial in prepared.trials:
        one, other = ran(prepared, trial), ran(prepared, replace(trial, sizes=(1, 3)))
        assert (replace(one[0], seconds=0.0), one[1]) == (replace(other[0], seconds=0.0), other[1])
