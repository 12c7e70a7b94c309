"""The noise has half of the standard deviation that the budget asks for."""

from dataclasses import replace

from broken.tiny import Tiny

from fedsim.privacy.plan import PrivacyPlan


class HalfTheNoise(Tiny):
    def plan(self, epsilon: float | None, delta: float) -> PrivacyPlan | None:
        plan = super().plan(epsilon, delta)
        return plan and replace(plan, sigma=plan.sigma / 2)
