"""The privacy loss distribution of composed Gaussian mechanisms, by dp-accounting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedsim.privacy.mechanism import Mechanism


def composed_losses(mechanisms: Sequence[Mechanism], mesh: float) -> Any:
    """Return dp-accounting's privacy loss distribution of all mechanisms together.

    It is an upper bound (Doroshenko et al. 2022, "Connect the dots"), and holds for both orders of
    two neighbouring data sets.

    Args:
        mechanisms: what ran.
        mesh: the width of the mesh on which losses are put.
    """
    from dp_accounting.pld import privacy_loss_distribution  # late: it takes a second to import

    total: Any = privacy_loss_distribution.identity(mesh)
    for mechanism in mechanisms:
        losses = privacy_loss_distribution.from_gaussian_mechanism(
            mechanism.noise_multiplier,
            sampling_prob=mechanism.sample_rate,
            value_discretization_interval=mesh,
            pessimistic_estimate=True,
            use_connect_dots=True,
        )
        total = total.compose(losses.self_compose(mechanism.count))
    return total
