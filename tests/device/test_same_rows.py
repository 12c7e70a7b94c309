"""A cell gives the same row on every device: the same samples, the same noise, the same scores. The
device is FEDSIM_TEST_DEVICE's.
"""

from functools import partial
from typing import Any

import pytest
import torch
from cells import SHIPPED, quick, small_cells
from devices import DEVICE, OnePlace, flush

from fedsim.device import CPU
from fedsim.evaluation.evaluate import EvaluationResult, evaluate_cell
from fedsim.plugins.registry import lookup
from fedsim.seeds import Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.rounds import RoundRecord, train
from fedsim.training.state import copied
from fedsim.training.trial import Outcome, Trial, local_pool, run_trial

FOREIGN = DEVICE != CPU
FEW = {
    "rounds": 3,
    "local_steps": 2,
    "generator_steps": 3,
    "meta_steps": 3,
    "hidden": (8,),
    "fakes": 16,
}
"""A lazy device compiles a round as one program: small ones."""


def few(name: str) -> dict[str, Any]:
    """An entry of three rounds of a few steps."""
    return quick(
        name,
        **{key: value for key, value in FEW.items() if key in lookup(name).Params.model_fields},
    )


ENTRIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    name: (few(name), {}) for name in SHIPPED
} | {
    "silo": (few("fedhypevae"), {"trust": "silo"}),
    "clients": (few("fedhypevae"), {"unit": "client"}),
}
QUICKLY = ("fedhypevae", "dp-gaussian", "fedavg-linear")
"""What is enough where the device is the CPU."""


def ran(
    trial: Trial, data: Any, device: torch.device
) -> tuple[list[RoundRecord], Outcome, EvaluationResult]:
    """Every round's record, the outcome and its evaluation; a lazy device is let to compute after
    each.
    """
    steps = []
    with OnePlace():
        for step in run_trial(trial, data, partial(local_pool, device=device), None, device):
            flush()
            steps.append(step)
        *records, outcome = steps
        assert isinstance(outcome, Outcome)
        return records, outcome, evaluate_cell(trial, outcome.state, data, device)  # type: ignore[return-value]


@pytest.mark.parametrize("name", ENTRIES if FOREIGN else QUICKLY)
def test_a_cell_samples_and_noises_alike_and_scores_the_same(name: str) -> None:
    entry, keys = ENTRIES[name]
    prepared = small_cells(
        entry,
        **{
            "epsilon": 4.0,
            "evaluation": {"per_class": 20, "per_client": True, "personal": "synthetic"},
            "resources": {"clients_per_actor": 2},
            **keys,
        },
    )
    (trial,), (data,) = prepared.trials, prepared.data.values()
    (here, at_home, scored_home), (there, abroad, scored_abroad) = (
        ran(trial, data, device) for device in (CPU, DEVICE)
    )
    assert [(r.values["sampled"], r.values["noise"]) for r in there] == [
        (r.values["sampled"], r.values["noise"]) for r in here
    ]
    for name, score in scored_home.scores.items():
        assert scored_abroad.scores[name] == pytest.approx(score, abs=1e-3 if FOREIGN else 0), name
    assert (abroad.epsilon_spent, abroad.uplink_bytes) == (
        at_home.epsilon_spent,
        at_home.uplink_bytes,
    )
    assert all(value.device == CPU for value in abroad.state.values())


def test_a_checkpoint_of_one_device_goes_on_on_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup("fedhypevae"), "average_from", 0.0)
    prepared = small_cells(few("fedhypevae"), epsilon=4.0)
    (trial,), (data,) = prepared.trials, prepared.data.values()

    def training(device: torch.device, resume: Any = None, checkpoint: Any = None) -> Any:
        algorithm = build_algorithm(trial.cell.algorithm, trial.cell.params, trial.task)
        return train(
            algorithm,
            local_pool(trial, data, None, device),
            trial.plan,
            Seeds(trial.cell.seed),
            resume,
            checkpoint,
            device,
        )

    kept: list[Any] = []
    first = training(DEVICE, None, lambda capture, is_last: kept.append(capture().kept()))
    *_, whole = training(CPU)
    for _ in range(whole.round):
        next(first)
    assert {value.device for value in kept[-1].tensors.values()} == {CPU}
    (rest,) = training(CPU, kept[-1])
    assert (rest.round, rest.values["noise"]) == (whole.round, whole.values["noise"])
    assert rest.values["signal_norm"] == pytest.approx(whole.values["signal_norm"], rel=1e-4)
    assert copied(kept[-1].tensors).keys() == kept[-1].tensors.keys()
