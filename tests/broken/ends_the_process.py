"""The server ends the process, or is interrupted as by Ctrl-C."""

from collections.abc import Mapping

from broken.tiny import Tiny

from fedsim.methods.messages import Round, Server, Tensors


class Exits(Tiny):
    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        raise SystemExit(0)


class Interrupted(Tiny):
    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        raise KeyboardInterrupt
