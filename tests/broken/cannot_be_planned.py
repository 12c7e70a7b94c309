"""Its clip norm cannot be computed."""

from broken.tiny import Tiny


class CannotBePlanned(Tiny):
    def clip(self) -> float:
        return 1 / 0
