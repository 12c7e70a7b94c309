"""It cannot be built or planned, raises, or ends its process."""

from collections.abc import Mapping

from broken.tiny import Tiny, TinyParams
from torch import nn

from fedsim.errors import UserError
from fedsim.methods.messages import Round, Server, Tensors


class CannotBeBuilt(Tiny):
    """Layers of a size that does not exist."""

    def build(self, clients: int) -> nn.Module:
        return nn.ModuleDict({"prototypes": nn.Linear(self.task.classes, -self.task.dim)})


class CannotBePlanned(Tiny):
    """Its clip norm cannot be computed."""

    def clip(self) -> float:
        return 1 / 0


class RowsOnly(TinyParams):
    rows_only: bool = True


class ClientIsRefused(Tiny):
    """Clients are stated as a unit, and have no plan with the default parameters."""

    Params = RowsOnly
    units = ("example", "client")
    trusts = ("silo",)

    def check_setting(self) -> None:
        if self.params.rows_only and self.task.unit == "client":
            raise UserError("rows_only", "clients have no plan", "leave it out")


class AnyUnit(RowsOnly):
    rows_only: bool = False


class ClientMayBeRefused(ClientIsRefused):
    """With one of two values."""

    Params = AnyUnit


class Doubled(Tiny):
    """Its parameters are of another precision than the rows."""

    def build(self, clients: int) -> nn.Module:
        return super().build(clients).double()


class Raises(Tiny):
    """The server divides by zero."""

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        return {"never": 1 / round_.number}


class Exits(Tiny):
    """The server ends the process."""

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        raise SystemExit(0)


class Interrupted(Tiny):
    """As by Ctrl-C."""

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        raise KeyboardInterrupt
