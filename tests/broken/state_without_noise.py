"""What stays with a client is trained without noise, and (epsilon, delta) is claimed to be proved all the same."""

from broken.tiny import Adapted, TinyParams

from fedsim.privacy.plan import Claim


class Unnoised(TinyParams):
    noised: str = "shared"


class StateWithoutNoise(Adapted):
    Params = Unnoised

    def claim(self) -> Claim:
        return "proved"
