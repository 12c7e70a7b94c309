"""The server's step is shaken by a generator that nobody seeded."""

from collections.abc import Mapping

import numpy as np
import torch
from broken.tiny import Tiny

from fedsim.methods.messages import Round, Server, Tensors


class NotDeterministic(Tiny):
    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        shake = torch.from_numpy(np.random.default_rng().standard_normal(self.task.dim)).float()
        return super().server_step(server, round_, total | {"prototypes.bias": total["prototypes.bias"] + shake})
