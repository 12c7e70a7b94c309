"""The budget is solved for 20 of 250 epochs, as the public DP-CVAE's is."""

from dataclasses import replace

from broken.tiny import Tiny

from fedsim.privacy.plan import Release


class CountsATwelfthOfTheEpochs(Tiny):
    def releases(self) -> tuple[Release, ...]:
        return tuple(replace(release, steps=max(1, release.steps * 20 // 250)) for release in super().releases())
