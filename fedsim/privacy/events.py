"""What an accountant counts: Gaussian mechanisms.

An :class:`Event` is ``steps`` runs of f(S) + N(0, (noise_multiplier * D)^2 I), where S takes every unit independently with probability
``sample_rate`` and D is f's L2 sensitivity; ``sample_rate`` 1 is the plain Gaussian mechanism.
"""

from __future__ import annotations

from typing import NamedTuple


class Event(NamedTuple):
    """``steps`` runs of one mechanism; accountants also accept plain tuples of its fields."""

    noise_multiplier: float
    sample_rate: float
    steps: int

    def scaled(self, factor: float) -> Event:
        """The same with ``factor`` times the noise."""
        return self._replace(noise_multiplier=self.noise_multiplier * factor)


AnyEvent = Event | tuple[float, float, int]
