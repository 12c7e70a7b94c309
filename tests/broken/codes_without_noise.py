"""Codes that are trained without noise are kept beside the generator, which does not read them."""

from broken.tiny import Coded, TinyParams

from fedsim.privacy.plan import Claim


class CodesLeave(TinyParams):
    noised: str = "shared"


class CodesWithoutNoise(Coded):
    Params = CodesLeave

    def claim(self) -> Claim:
        return "proved"

    def releases_codes(self) -> bool:
        return True
