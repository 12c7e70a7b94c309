"""FedHypeVAE: a hypernetwork makes each client's CVAE; one for all turns a private code into a
decoder and a class-conditional prior.

arXiv 2601.00785. The paper leaves sizes, weights and the meta-code's training open; what is chosen
is said at its parameter or constant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from algorithms.fedhypevae_paper import paper_round
from algorithms.hyper_cvae import (
    BETA,
    CODE_SCALE,
    FedHypeVAEParams,
    HyperCVAE,
    HyperGenerator,
    fit_meta_codes,
)
from fedsim.batch import Batch
from fedsim.device import normal, to_device
from fedsim.methods.algorithm import Phase
from fedsim.methods.clients import Clients
from fedsim.methods.coordinates import Coordinates
from fedsim.methods.dp_sgd import DPSGD, RELEASE
from fedsim.methods.messages import Diagnostic, DiagnosticLike, Round, Server, Tensors
from fedsim.methods.parameters import signal_shares
from fedsim.models.cvae import gaussian_nll, gaussian_nll_root, kl_normal, sample_posterior
from fedsim.models.kernel import batch_mmd, kernel_features, kernel_frequencies, kernel_score
from fedsim.models.layers import initial_model
from fedsim.plugins.registry import register
from fedsim.privacy.plan import Claim, Release
from fedsim.seeds import Purpose, Seeds

SHOWN = 10
"""Clients that diagnostics tell of, those of the lowest numbers, however they are packed: a round
of many need not pay for all.
"""


@register("fedhypevae")
class FedHypeVAE(DPSGD):
    """Negative ELBO with a generated decoder and prior, plus kernel score, under federated
    DP-SGD.
    """

    source = "arXiv 2601.00785"
    Params = FedHypeVAEParams
    syntheses = ("neutral", "mixture")
    decay = 0.3
    average_from = 0.7

    def build(self, clients: int) -> nn.Module:
        """The cohort's model."""
        return HyperCVAE(self.params, self.task.dim, self.task.classes, clients)

    def initial_server(self, seeds: Seeds) -> Server:
        """As every algorithm's; prototypes start at zero: a class of few rows would keep a random
        start.
        """
        server = super().initial_server(seeds)
        model: Any = server.model
        if not self.params.decoder_hidden:
            (layer,) = model.decoder.modulated()
            with torch.no_grad():
                layer.rows.weight[:, self.params.latent :] = 0
        return server

    def start_in(self, coordinates: Coordinates, server: Server) -> None:
        """The map of z starts along the axes of the coordinates, with half of their variance."""
        if not self.params.decoder_hidden:
            model: Any = server.model
            model.decoder.start_map(coordinates.main_axes(self.params.latent) / math.sqrt(2))

    def draws(self) -> Mapping[str, tuple[int, ...]]:
        """One posterior draw; prior draws and their observation noise, two for the kernel score,
        one for the batch's MMD.
        """
        latent = self.params.latent
        dim = self.task.dim
        if self.in_paper_form:
            count = 1
        else:
            count = 2
        made: dict[str, tuple[int, ...]] = (
            {"prior": (count, latent), "observation": (count, dim)} if self.params.kernel else {}
        )
        return {"posterior": (latent,), **made}

    def clip_weights(self) -> Mapping[str, float]:
        """Factors that bring the parts' gradients to one order: the decoder's 1 / sqrt(d), the
        prior's observation variance.

        The decoder's bias hears every class, so that noise hurts it less than a prototype, which
        hears one of C: it gets 1 / sqrt(C). The paper's form clips a client's gradient as it is.
        """
        if self.in_paper_form:
            return {}
        root = math.sqrt(self.task.dim)
        last = len(self.params.decoder_hidden)
        bias = {f"decoder.layers.{last}.rows.bias": root / math.sqrt(self.task.classes)}
        return {"decoder.": root, **bias, "prior.": 0.1 * self.task.dim, "encoder.": 0.1}

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Per example: s^2 (-log p(x | z, y, v) + beta KL(q || p(z | y, v))) + lambda kernel score.

        s^2 is the current observation variance, held constant: the decoder's gradient is then the
        residual, whatever s^2 is. With the exact posterior, z is a constant and the KL divergence
        is estimated by log q(z) - log p(z | y, v), which has its gradient.
        """
        if self.params.code:
            scaled = CODE_SCALE[self.params.form] * model.code(batch.layout)
        else:
            scaled = batch.x[:, :0]
        code = model.features(scaled)
        prior = model.prior(batch.y, code)
        z, divergence = self.encoded(model, batch, prior)
        decoded = model.decoder(z.unsqueeze(1), batch.y, code).squeeze(1)
        observation = model.observation(batch.x)
        unit = observation.detach().exp().squeeze(-1)
        parts = {
            "reconstruction": unit * gaussian_nll(batch.x, decoded, observation),
            "kl": BETA[self.params.form] * unit * divergence,
        }
        if self.params.kernel:
            made = model.generate(scaled, batch.y, batch.draws["prior"], batch.draws["observation"])
            parts["kernel"] = self.params.kernel * (
                batch_mmd(batch.x, made[:, 0]).expand(len(batch))
                if self.in_paper_form
                else kernel_score(batch.x, made[:, 0], made[:, 1])
            )
        return parts

    def encoded(
        self, model: Any, batch: Batch, prior: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """A draw z ~ q(z | x, y, v) ``[N, latent]`` and KL(q || p(z | y, v)) ``[N]``, estimated by
        z where q is the exact posterior.
        """
        if self.params.encoder == "trained":
            mean, log_var = model.encoder(batch.x, batch.y, batch.layout)
            return sample_posterior(mean, log_var, batch.draws["posterior"]), kl_normal(
                mean, log_var, *prior
            )
        mean, deviation, density = model.posterior(batch, batch.draws["posterior"])
        z = mean + deviation
        return z, density + gaussian_nll_root(z, *prior)

    # --- the paper's form ---

    @property
    def in_paper_form(self) -> bool:
        """Whether clients train locally, at two levels, and are clipped whole."""
        return bool(self.params.form == "paper")

    def phases(self) -> tuple[Phase, ...]:
        """As for DP-SGD; in the paper's form sampling clients amplifies for ``unit: client``,
        nothing else does.
        """
        if not self.in_paper_form:
            return super().phases()
        if self.task.unit == "client":
            rate = self.params.client_rate
        else:
            rate = 1.0
        release = Release(RELEASE, rate, self.params.rounds)
        return (Phase(release, partial(paper_round, self), self.server_step, self.broadcast),)

    def clips_clients(self) -> bool:
        """In the paper's form for any unit."""
        return self.in_paper_form or super().clips_clients()

    def sensitivity(self) -> float:
        """C; in the paper's form 2C for an example or group, which may turn its client's clipped
        gradient into any other.
        """
        if self.in_paper_form and self.task.unit != "client":
            return 2 * self.clip()
        return super().sensitivity()

    def check_contract(self, round_: Round, broadcast: Tensors) -> None:
        """As for DP-SGD; the paper's form takes nothing of the loss for granted."""
        if not self.in_paper_form:
            super().check_contract(round_, broadcast)

    # --- what the server adds, and the outcome ---

    def public_terms(self, model: Any, stream: torch.Generator) -> Mapping[str, Tensor]:
        """The Lipschitz penalty of the hypernetwork."""
        weight = self.params.lipschitz * CODE_SCALE[self.params.form] ** 2
        if weight:
            return {"lipschitz": weight * model.lipschitz()}
        return {}

    def step_shares(
        self, mean: Tensors, noise: Mapping[str, float], state: Tensors, *, by_client: bool
    ) -> Tensors | None:
        """The gradient's share that is not noise: what noise drowns does not wander; in the paper's
        form all of it.
        """
        if self.in_paper_form:
            return None
        return signal_shares(mean, noise, state, by_client=by_client)

    def diagnostics(
        self, clients: Clients, parts: Mapping[str, Tensor], round_: Round
    ) -> Mapping[str, DiagnosticLike]:
        """KL in nats per example; of the first :data:`SHOWN` clients norms of what is generated,
        kernel features of one row a class.

        All clients decode the same draws, so that features differ by the codes alone.
        """
        # no decorator: a method that is not this package's own code is not proved
        with torch.no_grad():
            model: Any = clients.model
            weight = (BETA[self.params.form] * model.observation.variance().double()).float()
            kl: dict[str, DiagnosticLike] = {"kl": parts["kl"] / weight if "kl" in parts else []}
            shown = sum(client < SHOWN for client in clients.members)
            if not shown:
                return kl
            codes = model.codes(len(clients.members))[:shown]
            classes = self.task.classes
            stream = clients.seeds.torch(Purpose.DIAGNOSTICS, round_.stream)
            latent, observation = (
                normal((classes, 1, size), stream, codes)
                for size in (self.params.latent, self.task.dim)
            )
            y = torch.arange(classes, device=codes.device).repeat(shown)
            own = model.generate(
                codes.repeat_interleave(classes, 0),
                y,
                latent.repeat(shown, 1, 1),
                observation.repeat(shown, 1, 1),
            )
            made = own.view(shown, classes, self.task.dim)
            features = kernel_features(
                made, to_device(kernel_frequencies(self.task.dim, 128, stream), codes.device)
            )
            return {
                **kl,
                "generated_decoder_norm": model.decoder.generated_norms(model.features(codes)),
                "generated_prior_norm": torch.cat(
                    [part.flatten(1) for part in model.prior.table(model.features(codes))], 1
                ).norm(dim=1),
                "cross_client_mmd": Diagnostic(features.mean(1), "spread"),
            }

    def scope(self) -> str:
        """In the paper's words: ``joint``, or ``hypernetwork`` where that alone is noised."""
        if self.params.noised == "all":
            return "joint"
        return "hypernetwork"

    def claim(self) -> Claim:
        """As for DP-SGD; but data made with a code that carries no noise is no theorem. In the
        paper's form clients are clipped whole.
        """
        if not self.releases_codes() and self.params.synthesis == "client":
            return "heuristic"
        if self.in_paper_form:
            return "proved"
        return super().claim()

    def generator(self, server: Server) -> HyperGenerator:
        """A generator at the meta-codes, or at the clients' own codes."""
        model: Any = server.model
        if "code.weight" in server.codes:
            own = CODE_SCALE[self.params.form] * server.codes["code.weight"]
        else:  # the codes that the clients started from are public
            start: Any = initial_model(self.build, server.seeds, range(self.task.clients)).to(
                server.device
            )
            own = start.codes(self.task.clients)
        if self.params.synthesis == "client":
            return HyperGenerator(model, own, own)
        if self.params.synthesis == "neutral":
            count = 1
        else:
            count = min(3, self.task.clients)
        return HyperGenerator(
            model, fit_meta_codes(model, own, count, self.params.meta_steps, server.seeds), own
        )
