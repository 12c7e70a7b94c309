"""FedHypeVAE: one shared hypernetwork turns each client's private code into its CVAE decoder and class-conditional prior.

arXiv 2601.00785. The paper leaves sizes, weights and the training of the meta-code open; what is chosen here is said at its parameter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from algorithms.warm_start import RELEASED, Rows, WarmStart
from fedsim.batch import Batch
from fedsim.errors import UserError
from fedsim.methods.clients import Clients
from fedsim.methods.dp_sgd import DPSGD, DPSGDParams, averaged_model
from fedsim.methods.messages import Message, Server, Tensors
from fedsim.methods.one_shot import statistics_message
from fedsim.methods.optimise import adam_step
from fedsim.methods.registry import register
from fedsim.models.cvae import Encoder, ObservationNoise, gaussian_nll, gaussian_nll_diagonal, kl_normal, sample_posterior
from fedsim.models.hypernetwork import ConditionalPrior, ModulatedDecoder
from fedsim.models.initialise import initial_model
from fedsim.models.kernel import kernel_features, kernel_frequencies, kernel_score
from fedsim.models.layers import ClientCode
from fedsim.models.posterior import linear_posterior, posterior_spread
from fedsim.privacy.clipping import Norms
from fedsim.privacy.plan import Claim, PrivacyPlan, Release
from fedsim.privacy.statistics.spectral import leading, steady
from fedsim.seeds import Purpose, Seeds


class FedHypeVAEParams(DPSGDParams):
    """Parameters of FedHypeVAE.

    Attributes:
        latent: dimension of z.
        code: dimension of the client code v; 0: no hypernetwork, one decoder and prior for all clients.
        code_scale: factor on v before it enters the hypernetwork: how far clients can differ.
        encoder: ``trained``, the paper's encoder, private to its client; ``posterior``, the exact posterior of a decoder without
            hidden layer, given codes and shared parameters: nothing to train, so no privacy cost and no noise.
        encoder_hidden: widths of the trained encoder's hidden layers.
        decoder_hidden: widths of the decoder's; none means a prototype per class plus a linear map of z.
        prior: ``conditional`` on label and code, as in the paper; ``standard``: N(0, I).
        observation: ``shared``, one standard deviation for every feature and client; ``modulated``, times the decoder's row scales.
        class_maps: every class has a linear map of z of its own (class-specific covariances).
        beta: weight of KL(q || p(z | y, v)).
        kernel: weight of the per-example kernel score (the MMD alignment).
        lipschitz: weight of the squared Jacobian norm of the hypernetwork (on shared parameters alone, free of privacy cost).
        initial_variance: of the likelihood times the embedding's dimension, before it is learned.
        latent_share: norm of z's part of the decoder gradient relative to the prototypes' inside the joint clip.
        warm_start: ``moments`` starts decoder and prior from released moments, which are in the ledger; ``client-moments`` also row scales,
            shifts and codes, from each client's mean and variances (for clients whose features differ); ``none`` from random weights.
        sgd_share: with a warm start, DP-SGD's share of the budget, in units of 1 / sigma^2.
        synthesis: ``neutral`` decodes one meta-code, ``mixture`` several, ``client`` each client's own code in turn.
        meta_codes: how many codes a mixture has.
        meta_steps: Adam steps that fit the meta-codes to the clients' generators.
    """

    latent: int = Field(8, ge=1)
    code: int = Field(4, ge=0)
    code_scale: float = Field(0.3, gt=0)
    encoder: Literal["trained", "posterior"] = "trained"
    encoder_hidden: tuple[int, ...] = (32,)
    decoder_hidden: tuple[int, ...] = ()
    prior: Literal["conditional", "standard"] = "conditional"
    observation: Literal["shared", "modulated"] = "shared"
    class_maps: bool = False
    beta: float = Field(0.5, ge=0)
    kernel: float = Field(0.05, ge=0)
    lipschitz: float = Field(1e-4, ge=0)
    initial_variance: float = Field(0.5, gt=0)
    latent_share: float = Field(1.0, gt=0)
    warm_start: Literal["none", "moments", "client-moments"] = "none"
    sgd_share: float = Field(0.1, gt=0, lt=1)
    synthesis: Literal["neutral", "mixture", "client"] = "neutral"
    meta_codes: int = Field(3, ge=1)
    meta_steps: int = Field(50, ge=0)

    @model_validator(mode="after")
    def _linear_where_needed(self) -> FedHypeVAEParams:
        if self.decoder_hidden and (self.encoder == "posterior" or self.warm_start != "none"):
            raise ValueError("decoder_hidden is not empty; encoder: posterior and a warm start need a decoder without hidden layers")
        if self.warm_start == "client-moments" and not self.code:
            raise ValueError("code is 0; warm_start: client-moments needs a hypernetwork, give code: 1 or more")
        return self


class HyperCVAE(nn.Module):
    """A cohort's model: private encoders and codes (one per client), the shared hypernetwork, the likelihood's variance."""

    def __init__(self, params: FedHypeVAEParams, dim: int, classes: int, clients: int) -> None:
        super().__init__()
        self.params = params
        self.spread: tuple[list[tuple[Tensor, int]], tuple[Tensor, Tensor]] | None = None
        if params.encoder == "trained":
            self.encoder = Encoder(dim, classes, params.encoder_hidden, params.latent, clients)
        if params.code:
            self.code = ClientCode(clients, params.code)
        scale = params.latent_share / math.sqrt(params.latent)
        self.decoder = ModulatedDecoder(params.latent, classes, params.decoder_hidden, dim, params.code, scale, params.class_maps)
        self.prior = ConditionalPrior(params.latent, classes, params.code)
        self.prior.requires_grad_(params.prior == "conditional")
        self.observation = ObservationNoise(params.initial_variance / dim)

    def codes(self, clients: int) -> Tensor:
        """The scaled codes of the cohort's ``clients``, constants ``[K, code]``."""
        return self.params.code_scale * self.code.weight.detach() if self.params.code else torch.zeros(clients, 0)

    def noise_scale(self, codes: Tensor) -> Tensor | None:
        """What every feature's observation noise is multiplied by, ``[N, d]``; None: nothing."""
        return self.decoder.row_scale(codes) if self.params.observation == "modulated" else None

    @torch.no_grad()
    def posterior(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Z from the exact posterior ``[N, latent]``, its log density ``[N]``; constants to the gradient (Fisher's identity, as in EM)."""
        codes = self.codes(batch.layout.clients)
        maps, prototypes = self.decoder.linear_maps()
        (layer,) = self.decoder.modulated()
        scales, shifts = layer.modulation(codes)
        client, prior, variance = batch.layout.client, self.prior.table(codes), self.observation.variance()
        noise_scale = self.noise_scale(codes)
        # noise that is scaled as its row leaves, in its own units, the plain maps
        rows = scales if noise_scale is None else scales / noise_scale
        # the same for all chunks of a batch: kept until a parameter changes
        at = [(p, p._version) for p in self.parameters()]
        if self.spread is None or any(a is not b or m != n for (a, m), (b, n) in zip(self.spread[0], at, strict=True)):
            self.spread = at, posterior_spread(maps, rows, prior[1], variance)
        offset = scales[client] * prototypes[batch.y] + shifts[client] / math.sqrt(self.decoder.dim)
        group, residual = torch.stack([client, batch.y]), batch.x - offset
        if noise_scale is not None:
            residual = residual / noise_scale[client]
        return linear_posterior(residual, group, maps, rows, prior, variance, self.spread[1], noise)

    def generate(self, code: Tensor, y: Tensor, latent: Tensor, observation: Tensor) -> Tensor:
        """X ~ p(x | z) p(z | y, v) from standard normal draws ``[N, T, latent]`` and ``[N, T, d]``; codes ``[N, k]``."""
        mean, log_var = self.prior(y, code)
        z = mean.unsqueeze(1) + (0.5 * log_var).exp().unsqueeze(1) * latent
        decoded: Tensor = self.decoder(z, y, code)
        std, scale = (0.5 * self.observation(mean)).exp(), self.noise_scale(code)
        return decoded + (std if scale is None else std * scale).unsqueeze(1) * observation


FEATURES = 256
"""Random features behind the diagnostic cross-client MMD."""


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

        s^2 is the current observation variance, held constant: the decoder's gradient is then the residual, whatever s^2 is. With the exact
        posterior, z is a constant and the KL divergence is estimated by log q(z) - log p(z | y, v), which has its gradient.
        """
        code = self.params.code_scale * model.code(batch.layout) if self.params.code else batch.x[:, :0]
        prior = model.prior(batch.y, code)
        if self.params.encoder == "trained":
            mean, log_var = model.encoder(batch.x, batch.y, batch.layout)
            z = sample_posterior(mean, log_var, batch.noise["posterior"])
            divergence = kl_normal(mean, log_var, *prior)
        else:
            z, density = model.posterior(batch, batch.noise["posterior"])
            divergence = density + gaussian_nll_diagonal(z, *prior)
        decoded = model.decoder(z.unsqueeze(1), batch.y, code).squeeze(1)
        observation = model.observation(batch.x)
        unit = observation.detach().exp().squeeze(-1)
        parts = {
            "reconstruction": unit * gaussian_nll(batch.x, decoded, observation, model.noise_scale(code)),
            "kl": self.params.beta * unit * divergence,
        }
        if self.params.kernel:
            pair = model.generate(code, batch.y, batch.noise["prior"], batch.noise["observation"])
            parts["kernel"] = self.params.kernel * kernel_score(batch.x, pair[:, 0], pair[:, 1])
        return parts

    # --- the warm start ---

    def warm_start(self) -> WarmStart | None:
        """What comes before DP-SGD, if anything."""
        p = self.params
        if p.warm_start == "none":
            return None
        return WarmStart(p.warm_start, self.task.classes, self.task.clients, p.latent, p.code_scale, p.class_maps)

    def releases(self) -> tuple[Release, ...]:
        """DP-SGD; before it, with a warm start, its moments."""
        (sgd,), warm = super().releases(), self.warm_start()
        return (sgd,) if warm is None else warm.releases(sgd, self.params.sgd_share)

    def plan(self, epsilon: float | None, delta: float) -> PrivacyPlan | None:
        """As every algorithm's; moments are released for unit example only."""
        if self.params.warm_start != "none" and self.task.unit != "example":
            problem = f"warm_start: {self.params.warm_start} does not support unit client"
            raise UserError(f"algorithm {self.name}", problem, "set warm_start: none")
        return super().plan(epsilon, delta)

    def broadcast(self, server: Server) -> Tensors:
        """The shared parameters, and for the warm start what has been released before."""
        return super().broadcast(server) | {name: value for name, value in server.tensors.items() if name in RELEASED}

    def client_round(self, clients: Clients, round_: int, release: Release, broadcast: Tensors) -> Message:
        """A warm-start release, or a DP-SGD step."""
        members, warm = torch.tensor(clients.members), self.warm_start()
        if warm is None or release.name not in warm:
            if "codes" in broadcast and self.step(round_) == 0:
                model: Any = clients.model
                with torch.no_grad():
                    model.code.weight.copy_(broadcast["codes"][members])
            return super().client_round(clients, round_, release, broadcast)
        client = torch.repeat_interleave(members, torch.tensor([len(x) for x in clients.x]))
        products, weights = warm.statistics(release.name, Rows(torch.cat(clients.x), torch.cat(clients.y), client), broadcast)
        scaled = {name: self.clip() * weight for name, weight in weights.items()}
        return statistics_message(clients, round_, release, products, Norms(self.clip(), weights=scaled))

    def server_step(self, server: Server, round_: int, release: Release, total: Tensors) -> Mapping[str, float]:
        """Take a warm-start release in, or a DP-SGD step."""
        warm = self.warm_start()
        if warm is None or release.name not in warm:
            return super().server_step(server, round_, release, total)
        none = torch.zeros(0, dtype=torch.long)
        _, weights = warm.statistics(release.name, Rows(torch.zeros(0, self.task.dim), none, none), server.tensors)
        sums = {name: value / (self.clip() * weights[name]) for name, value in total.items()}
        warm.receive(server, release.name, sums, server.noise_std(release.name, self.task.clients) / self.clip())
        return {}

    # --- what the server adds, and the outcome ---

    def penalties(self, model: Any, stream: torch.Generator) -> Mapping[str, Tensor]:
        """The Lipschitz penalty: squared Frobenius norm of d(generated decoder and prior) / dv."""
        if not self.params.lipschitz:
            return {}
        weight = self.params.lipschitz * self.params.code_scale**2
        return {"lipschitz": weight * (model.decoder.lipschitz() + model.prior.lipschitz())}

    @torch.no_grad()
    def observe(self, clients: Clients, parts: Mapping[str, Tensor], round_: int) -> Mapping[str, list[Any]]:
        """KL in nats per example; per client the norms of what is generated, and kernel features of one row a class.

        All clients decode the same draws, so that features differ by the codes alone.
        """
        model: Any = clients.model
        codes = model.codes(len(clients.members))
        stream = clients.seeds.torch(Purpose.DIAGNOSTICS, round_)
        latent, observation = (torch.randn(self.task.classes, 1, size, generator=stream) for size in (self.params.latent, self.task.dim))
        y = torch.arange(self.task.classes)
        made = torch.cat([model.generate(code.expand(len(y), -1), y, latent, observation) for code in codes], 1).transpose(0, 1)
        weight = self.params.beta * float(model.observation.variance())
        return {
            "kl": (parts["kl"] / weight).tolist() if weight and "kl" in parts else [],
            "generated_decoder_norm": model.decoder.generated_norms(codes).tolist(),
            "generated_prior_norm": torch.cat(model.prior.table(codes), 1).flatten(1).norm(dim=1).tolist(),
            "generator_features": kernel_features(made, kernel_frequencies(self.task.dim, FEATURES // 2, stream)).mean(1).tolist(),
        }

    def claim(self) -> Claim:
        """As for DP-SGD; but data made with a code that carries no noise is no theorem."""
        if not self.releases_codes() and self.params.synthesis == "client":
            return "heuristic"
        return super().claim()

    def generator(self, server: Server, codes: Tensors, seeds: Seeds) -> HyperGenerator:
        """A generator at the meta-codes, or at the clients' own codes."""
        model: Any = averaged_model(server)
        if "code.weight" in codes:
            own = self.params.code_scale * codes["code.weight"]
        else:  # the codes that the clients started from are public
            start: Any = initial_model(self.build, seeds, range(self.task.clients))
            own = start.codes(self.task.clients)
        if self.params.synthesis == "client":
            return HyperGenerator(model, own, own)
        count = 1 if self.params.synthesis == "neutral" else min(self.params.meta_codes, self.task.clients)
        return HyperGenerator(model, fit_meta_codes(model, own, count, self.params.meta_steps, seeds), own)


def fit_meta_codes(model: Any, codes: Tensor, count: int, steps: int, seeds: Seeds) -> Tensor:
    """``count`` codes whose mixture of generators is closest, in kernel score, to the mixture of the clients' generators.

    Reads only released codes and the private-already hypernetwork: post-processing, no privacy cost. The codes start at the means of
    ``count`` groups of clients along the codes' first principal direction, or in the clients' order where there is no first one.

    Args:
        model: the shared model.
        codes: the clients' codes ``[K, k]``, scaled.
        count: how many meta-codes; 1 is the neutral one.
        steps: Adam steps.
        seeds: the cell's seed tree.
    """
    if codes.shape[1] == 0:
        return codes[:count]
    centred = codes - codes.mean(0)
    _, direction = leading(centred.T @ centred, 1, 0.0)
    order = torch.argsort((centred.double() @ steady(direction)).sum(1), stable=True)
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
            picked = torch.randint(len(self.codes), (len(labels),), generator=stream)
            latent = torch.randn(len(labels), 1, self.model.params.latent, generator=stream)
            observation = torch.randn(len(labels), 1, self.model.decoder.dim, generator=stream)
            generated: Tensor = self.model.generate(self.codes[picked], labels, latent, observation)
            return generated[:, 0]
