"""What choosing the best of several trainings costs, and mechanisms as Google's dp-accounting has them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fedsim.privacy.accountant import ORDERS
from fedsim.privacy.events import AnyEvent, Event


def repeat_and_select_epsilon(
    events: Sequence[AnyEvent], trials_mean: float, trials_shape: float, delta: float, orders: Sequence[float] = ORDERS
) -> float:
    """The epsilon of a random number of trainings of which only the best leaves, by dp-accounting's Rényi accountant.

    Papernot & Steinke 2022, "Hyperparameter tuning with Rényi differential privacy" (arXiv 2110.03620), theorem 2 (truncated negative
    binomial; 1: geometric, 0: logarithmic) and theorem 6 (Poisson). The number of trainings has to be drawn without the data, and has to
    stay secret.

    Args:
        events: the mechanisms of one training together with those of its score.
        trials_mean: the mean number of trainings, at least 1.
        trials_shape: of the truncated negative binomial distribution, at least 0; ``math.inf`` for the Poisson distribution.
        delta: of epsilon.
        orders: Rényi orders.

    Raises:
        ValueError: a mean below 1 or a negative shape.
    """
    from dp_accounting.dp_event import RepeatAndSelectDpEvent

    repeated = RepeatAndSelectDpEvent(composed_event(events), trials_mean, trials_shape)
    return float(composed_by_renyi(repeated, orders).get_epsilon(delta))


def composed_by_renyi(event: Any, orders: Sequence[float] = ORDERS) -> Any:
    """dp-accounting's Rényi accountant of an event of its own."""
    from dp_accounting.rdp import RdpAccountant

    # it warns of every order whose series does not converge, and leaves it out, which is what is wanted
    logging.getLogger("absl").setLevel(logging.ERROR)
    return RdpAccountant(orders).compose(event)


def composed_event(events: Sequence[AnyEvent]) -> Any:
    """All ``events`` as one of dp-accounting's; an exponential mechanism is epsilon_0^2 / 8-zCDP (Cesar & Rogers 2021, lemma 3.4)."""
    import dp_accounting

    def one(event: Event) -> Any:
        if event.mechanism == "exponential":
            return dp_accounting.ZCDpEvent(event.noise_multiplier**-2 / 8)
        gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        return gaussian if event.sample_rate == 1 else dp_accounting.PoissonSampledDpEvent(event.sample_rate, gaussian)

    steps = [Event(*event) for event in events]
    return dp_accounting.ComposedDpEvent([dp_accounting.SelfComposedDpEvent(one(event), event.steps) for event in steps if event.steps])
