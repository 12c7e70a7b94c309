"""What clients send and receive over a training, and how much they train."""

from typing import Any

from cells import one_cell, quick
from rows import outcome_of

from fedsim.training.trial import Outcome

CLIENTS = 4


def ended(name: str, keys: Any = None, **params: Any) -> Outcome:
    trial, data, _ = one_cell(
        quick(name, **params),
        epsilon=4.0,
        **keys or {},
    )
    return outcome_of(trial, data)


def test_linear_classifier_travels_both_ways_in_each_round() -> None:
    outcome = ended("fedavg-linear", rounds=3)
    assert outcome.parameters == 10 * (64 + 1)
    assert outcome.uplink_bytes == 3 * CLIENTS * 4 * outcome.parameters
    assert outcome.downlink_bytes == outcome.uplink_bytes


def share_received(name: str, **keys: Any) -> float:
    """The share of all models that clients receive if half of them take part."""
    outcome = ended(name, keys, rounds=8, client_rate=0.5)
    assert outcome.uplink_bytes == outcome.downlink_bytes
    all_models = 8 * CLIENTS * 4 * outcome.parameters
    return outcome.downlink_bytes / all_models


def test_absent_client_receives_nothing_unless_private() -> None:
    assert 0 < share_received("fedavg-linear") < 1
    assert share_received("dp-fedavg-linear", unit="client") == 1


def test_earlier_releases_are_broadcast_in_later_phases() -> None:
    """Clients send 65 numbers for the mean; the first broadcast has no mean yet."""
    outcome = ended("dp-linear", rounds=2)
    model = 10 * 65
    assert outcome.downlink_bytes == 3 * CLIENTS * 4 * (model + 64)
    assert outcome.uplink_bytes == CLIENTS * 4 * (2 * model + 65)
