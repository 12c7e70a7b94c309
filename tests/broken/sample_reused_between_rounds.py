"""Every round has the sample of round 0: the plan claims a new one."""

from broken.tiny import Spelled
from torch import Tensor

from fedsim.methods.clients import Clients
from fedsim.privacy.plan import Release


class SampleReusedBetweenRounds(Spelled):
    def rows(self, clients: Clients, round_: int, release: Release) -> list[Tensor]:
        return clients.poisson(0, release.sample_rate)
