"""What FedHypeVAE yields: a generator at meta-codes that stand for all clients' codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedsim.device import integers, normal
from fedsim.methods.messages import Tensors
from fedsim.methods.optimise import adam_step
from fedsim.models.kernel import kernel_score
from fedsim.privacy.statistics.spectral import leading, steady
from fedsim.seeds import Purpose, Seeds


def fit_meta_codes(model: Any, codes: Tensor, count: int, steps: int, seeds: Seeds) -> Tensor:
    """``count`` codes whose mixture of generators is closest, in kernel score, to the mixture of the clients' generators.

    Reads only released codes, scaled, ``[K, k]``, and the private-already hypernetwork: post-processing, no privacy cost. The codes start
    at the means of ``count`` groups of clients along the codes' first principal direction, or in the clients' order where there is no first
    one.
    """
    if codes.shape[1] == 0:
        return codes[:count]
    centred = codes - codes.mean(0)
    _, direction = leading(centred.T @ centred, 1, 0.0)
    order = torch.argsort((centred.double() @ steady(direction)).sum(1), stable=True)
    meta = torch.stack([codes[group].mean(0) for group in order.tensor_split(count)])
    stream = seeds.torch(Purpose.META)
    rows, state = 16 * model.decoder.classes, Tensors()
    y = torch.arange(rows, device=codes.device) % model.decoder.classes
    meta.requires_grad_(True)
    for step in range(steps):
        client, picked = integers(len(codes), (rows,), stream, codes), integers(count, (2, rows), stream, codes)
        draws = [normal((rows, 1, size), stream, codes) for size in (model.params.latent, model.decoder.dim) for _ in range(3)]
        with torch.no_grad():
            target = model.generate(codes[client], y, draws[0], draws[3])[:, 0]
        first, second = (model.generate(meta[picked[i]], y, draws[1 + i], draws[4 + i])[:, 0] for i in (0, 1))
        (gradient,) = torch.autograd.grad(kernel_score(target, first, second).mean(), meta)
        adam_step({"meta": meta}, {"meta": gradient}, state, 0.02 * (1 - step / steps))
    return meta.detach()


class HyperGenerator:
    """Samples x for labels, each row with one of ``codes`` ``[M, k]`` drawn uniformly; ``own`` ``[K, k]`` are the clients' codes."""

    def __init__(self, model: Any, codes: Tensor, own: Tensor) -> None:
        self.model, self.codes, self.own = model, codes, own

    def of_client(self, client: int) -> HyperGenerator:
        """At a client's own code."""
        code = self.own[client : client + 1]
        return HyperGenerator(self.model, code, code)

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic embeddings ``[n, d]``: prior, decoder, observation noise."""
        with torch.no_grad():
            picked = integers(len(self.codes), (len(labels),), stream, labels)
            latent = normal((len(labels), 1, self.model.params.latent), stream, labels)
            observation = normal((len(labels), 1, self.model.decoder.dim), stream, labels)
            generated: Tensor = self.model.generate(self.codes[picked], labels, latent, observation)
            return generated[:, 0]
