"""The server divides by zero."""

from collections.abc import Mapping

from broken.tiny import Tiny

from fedsim.methods.messages import Server, Tensors
from fedsim.privacy.plan import Release


class Raises(Tiny):
    def server_step(self, server: Server, round_: int, release: Release, total: Tensors) -> Mapping[str, float]:
        return {"never": 1 / round_}
