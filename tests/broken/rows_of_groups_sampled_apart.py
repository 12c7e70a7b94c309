"""Only the first row of every sampled group is taken: what is clipped is not the unit that was sampled."""

from broken.tiny import Spelled
from torch import Tensor

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Round


class RowsOfGroupsSampledApart(Spelled):
    units = ("group",)

    def rows(self, clients: Clients, round_: Round) -> list[Tensor]:
        return [rows[::2] for rows in super().rows(clients, round_)]
