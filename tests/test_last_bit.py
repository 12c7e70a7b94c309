"""The same cell on another processor: sums that differ in their last bit; of so few synthetic rows
that a probe goes on to its minimum.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from cells import SHIPPED, crossed, one_cell, quick
from streams import seeded

from fedsim.data.embeddings import Embeddings
from fedsim.evaluation.evaluate import EvaluationResult, evaluate_cell
from fedsim.methods.messages import Message, Round, Tensors
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, LocalPool
from fedsim.training.trial import Outcome, Trial, run_trial

ENTRIES: dict[str, dict[str, Any]] = {name: quick(name) for name in SHIPPED}
ONE_OF_EACH = (
    "centralised",
    "fedhypevae",
    "fedavg-linear",
    "dp-fedavg-linear",
    "dp-gmm",
    "fedhypevae-warm",
)
"""An algorithm of every base class, and of every kind of message: updates, noised at clients or in
their sum, statistics, codes.
"""
SCORES = 1e-5
CODES = 1e-3
NEAR = 1e-6


class LastBitPool(LocalPool):
    """All clients in this process; every number that they send is moved to one of its float32
    neighbours.
    """

    def __init__(self, trial: Trial, data: Embeddings, seeds: Seeds) -> None:
        super().__init__(
            [Cohort(spec, data.x_train, data.y_train) for spec in trial.cohorts(seeds)]
        )
        self.stream = seeded(0)

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        messages = super().round(round_, broadcast)
        for message in messages:
            message.sums.update(
                {
                    name: self.moved(value)
                    for name, value in message.sums.items()
                    if value.is_floating_point()
                }
            )
        return messages

    def moved(self, value: torch.Tensor) -> torch.Tensor:
        up = torch.rand(value.shape, generator=self.stream) < 0.5
        return torch.where(
            value == 0,
            value,
            torch.nextafter(
                value,
                torch.where(
                    up,
                    torch.inf,
                    -torch.inf,
                ),
            ),
        )


def ended(
    entry: dict[str, Any], make_pool: Any = None, **keys: Any
) -> tuple[Outcome, EvaluationResult]:
    trial, data, _ = one_cell(
        entry, **{"epsilon": 4.0, "evaluation": {"per_class": 3, "per_client": True}, **keys}
    )
    if make_pool:
        *_, outcome = run_trial(trial, data, make_pool)
    else:
        *_, outcome = run_trial(trial, data)
    assert isinstance(outcome, Outcome)
    return outcome, evaluate_cell(trial, outcome.state, data)


def shown(outcome: Outcome, evaluation: EvaluationResult) -> dict[str, Any]:
    """The scores of a row, and the codes that were released."""
    codes = {
        name: value.flatten().tolist()
        for name, value in outcome.state.items()
        if {"code", "codes"} & set(name.split("."))
    }
    return {"scores": [*evaluation.scores.values()], "codes": codes}


def close(one: Mapping[str, Any], two: Mapping[str, Any]) -> None:
    assert two["scores"] == pytest.approx(one["scores"], rel=NEAR, abs=SCORES)
    assert one["codes"].keys() == two["codes"].keys()
    for name, codes in one["codes"].items():
        assert two["codes"][name] == pytest.approx(codes, abs=CODES)


@pytest.mark.parametrize(
    ("name", "trust"),
    crossed(
        lambda name, trust: name in ONE_OF_EACH and trust == "aggregate",
        ENTRIES,
        ["aggregate", "silo"],
    ),
)
def test_scores_and_codes_do_not_rest_on_a_last_bit(name: str, trust: str) -> None:
    here = shown(*ended(ENTRIES[name], trust=trust))
    close(here, shown(*ended(ENTRIES[name], LastBitPool, trust=trust)))
