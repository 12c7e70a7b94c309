"""The server's step is shaken by torch's global generator."""

from collections.abc import Mapping

import torch
from broken.tiny import Tiny

from fedsim.methods.messages import Round, Server, Tensors


class GlobalRandomState(Tiny):
    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        shake = 1e-3 * torch.randn(self.task.dim)
        return super().server_step(server, round_, total | {"prototypes.bias": total["prototypes.bias"] + shake})
