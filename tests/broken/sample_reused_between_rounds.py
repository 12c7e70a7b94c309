"""Every round has the sample of round 0: the plan claims a new one."""

from broken.tiny import Spelled
from torch import Tensor

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Round


class SampleReusedBetweenRounds(Spelled):
    def rows(self, clients: Clients, round_: Round) -> list[Tensor]:
        return clients.poisson(0, round_.release.sample_rate)
