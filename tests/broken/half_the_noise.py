"""The noise has half of the standard deviation that the budget asks for: its plan halves the sensitivity that it was solved for."""

from dataclasses import replace
from typing import Any

from broken.tiny import Tiny


class HalfTheNoise(Tiny):
    def plan(self, epsilon: float | None, delta: float) -> Any:
        plan = super().plan(epsilon, delta)  # type: ignore[misc]
        return plan and replace(plan, sensitivity=plan.sensitivity / 2)
