"""Rows are sampled at the rate that the plan claims for clients."""

from dataclasses import replace

from broken.tiny import Tiny

from fedsim.methods.phase import Phase


class RateOfRowsClaimedForClients(Tiny):
    units = ("client",)

    def phases(self) -> tuple[Phase, ...]:
        (phase,) = super().phases()
        return (replace(phase, release=replace(phase.release, sample_rate=self.params.sample_rate)),)
