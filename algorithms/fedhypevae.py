"""FedHypeVAE: one shared hypernetwork turns each client's private code into its CVAE decoder and class-conditional prior.

arXiv 2601.00785. The paper leaves sizes, weights and the training of the meta-code open; what is chosen here is said at its parameter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsim.algorithm import Server, Tensors
from fedsim.batch import Batch
from fedsim.dp_sgd import DPSGD, DPSGDParams, averaged_model
from fedsim.models.cvae import Encoder, ObservationNoise, gaussian_nll, kl_normal, sample_posterior
from fedsim.models.hypernetwork import ConditionalPrior, ModulatedDecoder
from fedsim.models.initialise import initial_model
from fedsim.models.kernel import kernel_score
from fedsim.models.layers import ClientCode
from fedsim.optimise import adam_step
from fedsim.privacy.plan import Claim
from fedsim.registry import register
from fedsim.seeds import Purpose, Seeds


class FedHypeVAEParams(DPSGDParams):
    """Parameters of FedHypeVAE.

    Attributes:
        latent: dimension of z.
        code: dimension of the client code v.
        code_scale: factor on v before it enters the hypernetwork: how far clients can differ.
        encoder_hidden, decoder_hidden: widths of the hidden layers; no decoder layer means a prototype per class plus a linear map.
        beta: weight of KL(q || p(z | y, v)).
        kernel: weight of the per-example kernel score (the MMD alignment).
        lipschitz: weight of the squared Jacobian norm of the hypernetwork (on shared parameters alone, free of privacy cost).
        initial_variance: of the likelihood times the embedding's dimension, before it is learned.
        latent_share: norm of z's part of the decoder gradient relative to the prototypes' inside the joint clip.
        synthesis: ``neutral`` decodes one meta-code, ``mixture`` several, ``client`` each client's own code in turn.
        meta_codes: how many codes a mixture has.
        meta_steps: Adam steps that fit the meta-codes to the clients' generators.
    """

    latent: int = Field(8, ge=1)
    code: int = Field(4, ge=1)
    code_scale: float = Field(0.3, gt=0)
    encoder_hidden: tuple[int, ...] = (32,)
    decoder_hidden: tuple[int, ...] = ()
    beta: float = Field(0.5, ge=0)
    kernel: float = Field(0.05, ge=0)
    lipschitz: float = Field(1e-4, ge=0)
    initial_variance: float = Field(0.5, gt=0)
    latent_share: float = Field(1.0, gt=0)
    synthesis: Literal["neutral", "mixture", "client"] = "neutral"
    meta_codes: int = Field(3, ge=1)
    meta_steps: int = Field(50, ge=0)


class HyperCVAE(nn.Module):
    """A cohort's model: private encoders and codes (one per client), the shared hypernetwork, the likelihood's variance."""

    def __init__(self, params: FedHypeVAEParams, dim: int, classes: int, clients: int) -> None:
        super().__init__()
        self.params = params
        self.encoder = Encoder(dim, classes, params.encoder_hidden, params.latent, clients)
        self.code = ClientCode(clients, params.code)
        scale = params.latent_share / math.sqrt(params.latent)
        self.decoder = ModulatedDecoder(params.latent, classes, params.decoder_hidden, dim, params.code, scale)
        self.prior = ConditionalPrior(params.latent, classes, params.code)
        self.observation = ObservationNoise(params.initial_variance / dim)

    def generate(self, code: Tensor, y: Tensor, latent: Tensor, observation: Tensor) -> Tensor:
        """X ~ p(x | z) p(z | y, v) from standard normal draws ``[N, T, latent]`` and ``[N, T, d]``; codes ``[N, k]``."""
        mean, log_var = self.prior(y, code)
        z = mean.unsqueeze(1) + (0.5 * log_var).exp().unsqueeze(1) * latent
        decoded: Tensor = self.decoder(z, y, code)
        std = (0.5 * self.observation(code[:, :1])).exp().unsqueeze(1)
        return decoded + std * observation


@register("fedhypevae")
class FedHypeVAE(DPSGD):
    """Negative ELBO with a generated decoder and prior, plus kernel score, under federated DP-SGD."""

    source = "arXiv 2601.00785"
    Params = FedHypeVAEParams

    def build(self, clients: int) -> nn.Module:
        """The cohort's model."""
        return HyperCVAE(self.params, self.task.dim, self.task.classes, clients)

    def noise(self) -> Mapping[str, tuple[int, ...]]:
        """One posterior draw; two prior draws and their observation noise for the kernel score."""
        latent, dim = self.params.latent, self.task.dim
        pair: dict[str, tuple[int, ...]] = {"prior": (2, latent), "observation": (2, dim)} if self.params.kernel else {}
        return {"posterior": (latent,), **pair}

    def balance(self) -> Mapping[str, float]:
        """Factors that bring the parts' gradients to one order: the decoder's 1 / sqrt(d), the prior's observation variance."""
        dim = self.task.dim
        return {"decoder.": math.sqrt(dim), "prior.": 0.1 * dim, "encoder.": 0.1}

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Per example: s^2 (-log p(x | z, y, v) + beta KL(q || p(z | y, v))) + lambda kernel score.

        s^2 is the current observation variance, held constant: the decoder's gradient is then the residual, whatever s^2 is.
        """
        code = self.params.code_scale * model.code(batch.layout)
        mean, log_var = model.encoder(batch.x, batch.y, batch.layout)
        z = sample_posterior(mean, log_var, batch.noise["posterior"])
        decoded = model.decoder(z.unsqueeze(1), batch.y, code).squeeze(1)
        observation = model.observation(batch.x)
        unit = observation.detach().exp().squeeze(-1)
        parts = {
            "reconstruction": unit * gaussian_nll(batch.x, decoded, observation),
            "kl": self.params.beta * unit * kl_normal(mean, log_var, *model.prior(batch.y, code)),
        }
        if self.params.kernel:
            pair = model.generate(code, batch.y, batch.noise["prior"], batch.noise["observation"])
            parts["kernel"] = self.params.kernel * kernel_score(batch.x, pair[:, 0], pair[:, 1])
        return parts

    def penalty(self, model: Any) -> Tensor | None:
        """The Lipschitz penalty: squared Frobenius norm of d(generated decoder and prior) / dv."""
        if not self.params.lipschitz:
            return None
        return self.params.lipschitz * self.params.code_scale**2 * (model.decoder.lipschitz() + model.prior.lipschitz())

    def claim(self) -> Claim:
        """As for DP-SGD; but data made with a code that carries no noise is no theorem."""
        if not self.releases_codes() and self.params.synthesis == "client":
            return "heuristic"
        return super().claim()

    def generator(self, server: Server, codes: Tensors, seeds: Seeds) -> HyperGenerator:
        """A generator at the meta-codes, or at the clients' own codes."""
        model: Any = averaged_model(server)
        own = codes.get("code.weight")
        if own is None:
            start: Any = initial_model(self.build, seeds, range(self.task.clients))
            own = start.code.weight.detach()  # the codes that the clients started from are public
        own = self.params.code_scale * own
        if self.params.synthesis == "client":
            return HyperGenerator(model, own)
        count = 1 if self.params.synthesis == "neutral" else min(self.params.meta_codes, self.task.clients)
        return HyperGenerator(model, fit_meta_codes(model, own, count, self.params.meta_steps, seeds))


def fit_meta_codes(model: Any, codes: Tensor, count: int, steps: int, seeds: Seeds) -> Tensor:
    """``count`` codes whose mixture of generators is closest, in kernel score, to the mixture of the clients' generators.

    Reads only released codes and the private-already hypernetwork: post-processing, no privacy cost. The codes start at the means of
    ``count`` groups of clients along the codes' first principal direction.

    Args:
        model: the shared model.
        codes: the clients' codes ``[K, k]``, scaled.
        count: how many meta-codes; 1 is the neutral one.
        steps: Adam steps.
        seeds: the cell's seed tree.
    """
    centred = codes - codes.mean(0)
    order = torch.argsort(centred @ torch.linalg.svd(centred, full_matrices=False).Vh[0], stable=True)
    meta = torch.stack([codes[group].mean(0) for group in order.tensor_split(count)])
    stream = seeds.torch(Purpose.META)
    rows, state = 16 * model.decoder.classes, {}
    y = torch.arange(rows) % model.decoder.classes
    meta.requires_grad_(True)
    for step in range(steps):
        client = torch.randint(len(codes), (rows,), generator=stream)
        picked = torch.randint(count, (2, rows), generator=stream)
        draws = [torch.randn(rows, 1, size, generator=stream) for size in (model.params.latent, model.decoder.dim) for _ in range(3)]
        with torch.no_grad():
            target = model.generate(codes[client], y, draws[0], draws[3])[:, 0]
        first, second = (model.generate(meta[picked[i]], y, draws[1 + i], draws[4 + i])[:, 0] for i in (0, 1))
        (gradient,) = torch.autograd.grad(kernel_score(target, first, second).mean(), meta)
        adam_step({"meta": meta}, {"meta": gradient}, state, 0.02 * (1 - step / steps))
    return meta.detach()


class HyperGenerator:
    """Samples x for labels, each row with one of ``codes`` ``[M, k]`` drawn uniformly."""

    def __init__(self, model: Any, codes: Tensor) -> None:
        self.model, self.codes = model, codes

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic embeddings ``[n, d]``: prior, decoder, observation noise."""
        with torch.no_grad():
            picked = torch.randint(len(self.codes), (len(labels),), generator=stream)
            latent = torch.randn(len(labels), 1, self.model.params.latent, generator=stream)
            observation = torch.randn(len(labels), 1, self.model.decoder.dim, generator=stream)
            generated: Tensor = self.model.generate(self.codes[picked], labels, latent, observation)
            return generated[:, 0]
