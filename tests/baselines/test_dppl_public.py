"""DPPL-Public's own mathematics, and its choices through a whole training; what every algorithm must keep is checked elsewhere."""

import math

import numpy as np
import pytest
import torch
from cells import small_cells
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import outcome_and_plan, score_of

from baselines.dppl_public import DPPLPublic, DPPLPublicParams
from fedsim.data.public import PublicRows
from fedsim.errors import UserError
from fedsim.evidence.worlds import choice_range
from fedsim.methods.messages import Task
from fedsim.methods.one_shot import Rows
from fedsim.models.layers import one_hot
from fedsim.runs.prepare import Prepared
from fedsim.seeds import Seeds

DIM, CLASSES = 20, 3


def method(**params) -> DPPLPublic:
    public = PublicRows(np.random.default_rng(0).standard_normal((40, DIM)).astype(np.float32))
    return DPPLPublic(DPPLPublicParams(**params), Task(DIM, CLASSES, 2, public=public))


def total(algorithm: DPPLPublic, rows: Rows, broadcast: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"scores": one_hot(rows.y, CLASSES).double().T @ algorithm.scores(rows, broadcast)}


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), scale=st.floats(0, 100), low=st.floats(0, 0.5))
def test_one_row_more_raises_the_scores_of_one_class_by_at_most_one_and_lowers_none(seed: int, scale: float, low: float) -> None:
    algorithm, stream = method(window=(low, low + 0.1)), torch.Generator().manual_seed(seed)
    broadcast = algorithm.initial_server(Seeds(0)).tensors | {"mean": torch.randn(DIM, generator=stream)}
    x, y = scale * torch.randn(9, DIM, generator=stream), torch.randint(CLASSES, (9,), generator=stream)
    more, less = (total(algorithm, Rows(x[own], y[own], y[own]), broadcast) for own in (slice(0, 9), slice(0, 8)))
    change = more["scores"] - less["scores"]
    assert change.min() >= -1e-9
    assert (change.abs().amax(1) > 1e-9).sum() <= 1
    assert choice_range(more, less) <= 1 + 1e-9


def test_a_class_chooses_its_own_direction_and_a_second_prototype_is_another() -> None:
    algorithm = method(top_k=2, window=(0.0, 1.0))
    server = algorithm.initial_server(Seeds(0))
    candidates = server.tensors["candidates"].clone()
    server.tensors["mean"] = torch.zeros(DIM)
    rows = Rows(candidates[[4, 4, 7, 9]], torch.tensor([0, 0, 1, 2]), torch.zeros(4, dtype=torch.long))
    picked = []
    for _ in range(2):
        picked.append(total(algorithm, rows, server.tensors)["scores"].argmax(1))
        algorithm.receive_choice(server, picked[-1])
    assert picked[0].tolist() == [4, 7, 9]
    assert not (picked[0] == picked[1]).any()
    torch.testing.assert_close(server.tensors["prototypes"], (candidates[picked[0]] + candidates[picked[1]]) / 2)
    assert "candidates" not in server.tensors
    assert algorithm.classifier(server).probabilities(candidates[[4, 7, 9]]).argmax(1).tolist() == [0, 1, 2]


def cells(epsilon: float, **keys) -> Prepared:
    return small_cells({"name": "dppl-public", "params": {"top_k": 2}}, epsilon=epsilon, dataset={"name": "digits", "limit": 1000}, **keys)


def test_it_tells_digits_apart_by_public_ones_without_noise_and_under_it() -> None:
    assert score_of(cells(math.inf)) > 0.7
    assert score_of(cells(4.0)) > 0.6


@pytest.mark.parametrize("unit", ["example", "client"])
def test_the_mean_and_the_choices_share_the_budget_and_the_ledger_says_what_each_was(unit: str) -> None:
    found, plan = outcome_and_plan(cells(4.0, unit=unit))
    assert {(r.name, r.mechanism, r.steps) for r in plan.releases} == {("mean", "gaussian", 1), ("prototypes", "exponential", 2)}
    assert (found.accountant, plan.claim) == ("pld", "proved")
    assert found.epsilon_spent == pytest.approx(plan.epsilon_reached)


def test_clients_cannot_choose_one_by_one() -> None:
    with pytest.raises(UserError, match="trust"):
        cells(4.0, trust="silo")
