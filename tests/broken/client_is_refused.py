"""Clients are stated as a unit, and have no plan with the default parameters, or with one of two values."""

from broken.tiny import Tiny, TinyParams

from fedsim.errors import UserError
from fedsim.privacy.plan import PrivacyPlan


class RowsOnly(TinyParams):
    rows_only: bool = True


class ClientIsRefused(Tiny):
    Params = RowsOnly
    units = ("example", "client")
    trusts = ("silo",)

    def plan(self, epsilon: float | None, delta: float) -> PrivacyPlan | None:
        if self.params.rows_only and self.task.unit == "client":
            raise UserError("rows_only", "clients have no plan", "leave it out")
        return super().plan(epsilon, delta)


class AnyUnit(RowsOnly):
    rows_only: bool = False


class ClientMayBeRefused(ClientIsRefused):
    Params = AnyUnit
