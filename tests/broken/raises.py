"""The server divides by zero."""

from collections.abc import Mapping

from broken.tiny import Tiny

from fedsim.methods.messages import Round, Server, Tensors


class Raises(Tiny):
    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        return {"never": 1 / round_.number}
