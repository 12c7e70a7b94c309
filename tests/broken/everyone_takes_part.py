"""Every client takes part in every round, where the plan claims that few do."""

from broken.tiny import Spelled, TinyParams
from pydantic import Field
from torch import Tensor

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Round


class FewTakePart(TinyParams):
    client_rate: float = Field(0.2, gt=0, le=1)


class EveryoneTakesPart(Spelled):
    Params = FewTakePart
    units = ("client",)

    def rows(self, clients: Clients, round_: Round) -> list[Tensor]:
        return clients.poisson(round_.stream, self.params.sample_rate)
