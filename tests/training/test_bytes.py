"""What clients send and receive over a training, and how much they train: counted from the messages
that pass.
"""

from dataclasses import replace
from typing import Any

from cells import quick, small_cells

from fedsim.training.trial import Outcome, run_trial

CLIENTS = 4


def ended(entry: dict[str, Any], sizes: tuple[int, ...] = (CLIENTS,), **keys: Any) -> Outcome:
    prepared = small_cells(entry, **{"epsilon": 4.0, **keys})
    (trial,), (data,) = prepared.trials, prepared.data.values()
    *_, outcome = run_trial(replace(trial, sizes=sizes), data)
    assert isinstance(outcome, Outcome)
    return outcome


def test_linear_classifier_travels_both_ways_in_each_round() -> None:
    outcome = ended(quick("fedavg-linear", rounds=3))
    assert outcome.parameters == 10 * (64 + 1)
    assert outcome.uplink_bytes == outcome.downlink_bytes == 3 * CLIENTS * 4 * outcome.parameters


def test_absent_client_receives_nothing_unless_private() -> None:
    def share(name: str, **keys: Any) -> float:
        outcome = ended(quick(name, rounds=8, client_rate=0.5), **keys)
        assert outcome.uplink_bytes == outcome.downlink_bytes
        return outcome.downlink_bytes / (8 * CLIENTS * 4 * outcome.parameters)

    assert 0 < share("fedavg-linear") < 1
    assert share("dp-fedavg-linear", unit="client") == 1


def test_earlier_releases_are_broadcast_in_later_phases() -> None:
    """The mean is a release of one round; 65 numbers are sent for it, and the first round receives
    a model that has no mean yet.
    """
    outcome = ended(quick("dp-linear", rounds=2))
    model = 10 * 65
    assert outcome.downlink_bytes == 3 * CLIENTS * 4 * (model + 64)
    assert outcome.uplink_bytes == CLIENTS * 4 * (2 * model + 65)
