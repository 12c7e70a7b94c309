"""The author states a theorem, by a bound that is a tenth of what a row adds."""

from broken.tiny import Tiny

from fedsim.privacy.plan import Claim


class SensitivityOfATenth(Tiny):
    def claim(self) -> Claim:
        return "stated"

    def sensitivity(self) -> float:
        return self.clip() / 10
