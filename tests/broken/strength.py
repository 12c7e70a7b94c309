"""The bound on what a row adds is too small, by a parameter; at 0 it is right."""

from broken.tiny import Tiny, TinyParams


class StrengthParams(TinyParams):
    strength: float = 1.0


class Strength(Tiny):
    Params = StrengthParams

    def sensitivity(self) -> float:
        return self.clip() / (1.0 + self.params.strength)  # type: ignore[no-any-return]
