"""Rows are sampled at the rate that the plan claims for clients."""

from broken.tiny import Tiny

from fedsim.methods.dp_sgd import RELEASE
from fedsim.privacy.plan import Release


class RateOfRowsClaimedForClients(Tiny):
    units = ("client",)

    def releases(self) -> tuple[Release, ...]:
        return (Release(RELEASE, self.params.sample_rate, self.params.rounds),)
