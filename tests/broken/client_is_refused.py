"""Clients are stated as a unit, and have no plan with the default parameters, or with one of two values."""

from broken.tiny import Tiny, TinyParams

from fedsim.errors import UserError


class RowsOnly(TinyParams):
    rows_only: bool = True


class ClientIsRefused(Tiny):
    Params = RowsOnly
    units = ("example", "client")
    trusts = ("silo",)

    def check_setting(self) -> None:
        if self.params.rows_only and self.task.unit == "client":
            raise UserError("rows_only", "clients have no plan", "leave it out")


class AnyUnit(RowsOnly):
    rows_only: bool = False


class ClientMayBeRefused(ClientIsRefused):
    Params = AnyUnit
