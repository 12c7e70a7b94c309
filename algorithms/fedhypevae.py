"""FedHypeVAE: a shared hypernetwork makes each client's CVAE from a private code.

A CVAE is a conditional variational autoencoder. The hypernetwork turns the code into its decoder
and its class-conditional prior (arXiv 2601.00785). The paper leaves sizes, weights and the training
of the meta-code open. Each choice of ours is described at its parameter or constant.
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
from fedsim.methods.messages import Diagnostic, DiagnosticLike, Round, Server, Shapes, Tensors
from fedsim.methods.parameters import signal_shares
from fedsim.models.cvae import gaussian_nll, gaussian_nll_root, kl_normal, sample_posterior
from fedsim.models.kernel import batch_mmd, kernel_features, kernel_frequencies, kernel_score
from fedsim.models.layers import initial_model
from fedsim.plugins.registry import register
from fedsim.privacy.noise import Deviations
from fedsim.privacy.plan import Claim, Release
from fedsim.seeds import Purpose, Seeds

SHOWN = 10
"""The number of clients that diagnostics describe, those of the lowest numbers.

A round of many clients need not pay for all.
"""
SHOWN_CLASSES = 100
"""The number of classes that diagnostics describe, those of the lowest labels."""


@register("fedhypevae")
class FedHypeVAE(DPSGD):
    """FedHypeVAE under federated DP-SGD.

    Its loss is the negative ELBO with a generated decoder and prior, plus the kernel score.
    """

    source = "arXiv 2601.00785"
    Params = FedHypeVAEParams
    syntheses = ("neutral", "mixture")
    decay = 0.3
    average_from = 0.7

    def build(self, clients: int) -> nn.Module:
        """Return the model of a cohort of ``clients``."""
        return HyperCVAE(
            self.params,
            self.task.dim,
            self.task.classes,
            clients,
        )

    def initial_server(self, seeds: Seeds) -> Server:
        """Return the server's start; without hidden layers the decoder's prototypes are 0.

        If they started at random, a class with few rows would keep its random prototype.
        """
        server = super().initial_server(seeds)
        model: Any = server.model
        if not self.params.decoder_hidden:
            (layer,) = model.decoder.modulated()
            with torch.no_grad():
                layer.rows.weight[:, self.params.latent :] = 0
        return server

    def start_in(self, coordinates: Coordinates, server: Server) -> None:
        """Start the map of z along the axes of the coordinates, with half of their variance.

        A decoder with hidden layers stays as it is.
        """
        if not self.params.decoder_hidden:
            model: Any = server.model
            axes = coordinates.main_axes(self.params.latent)
            model.decoder.start_map(axes / math.sqrt(2))

    def draws(self) -> Shapes:
        """Return the shapes of the draws of an example.

        There is one posterior draw. If the kernel term has a weight, there are also prior draws
        with their observation noise: two for the kernel score, or one for the MMD of the paper's
        form.
        """
        latent = self.params.latent
        shapes: dict[str, tuple[int, ...]] = {"posterior": (latent,)}
        if self.params.kernel:
            count = 1 if self.in_paper_form else 2
            shapes["prior"] = (count, latent)
            shapes["observation"] = (count, self.task.dim)
        return shapes

    def draws_in(self, round_: Round) -> Shapes:
        """Return the draws of a round; one in ``kernel_every`` has those of the kernel score."""
        shapes = self.draws()
        if round_.step % self.params.kernel_every == 0:
            return shapes
        return {"posterior": shapes["posterior"]}

    def clip_weights(self) -> Mapping[str, float]:
        """Return factors that bring the gradients of all parts to one order of magnitude.

        The decoder's gradient has the factor 1 / sqrt(d), and the prior's gradient has the
        observation variance as a factor. The bias of the decoder's last layer gets a gradient from
        every class, and a prototype only from its own of C classes. So noise hurts the bias less,
        and its weight has the additional factor 1 / sqrt(C). The paper's form clips a client's
        gradient as it is.
        """
        if self.in_paper_form:
            return {}
        root = math.sqrt(self.task.dim)
        last = len(self.params.decoder_hidden)
        return {
            "decoder.": root,
            f"decoder.layers.{last}.rows.bias": root / math.sqrt(self.task.classes),
            "prior.": 0.1 * self.task.dim,
            "encoder.": 0.1,
        }

    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Return the parts of each example's loss, ``[N]`` each.

        For the encoder's posterior q(z | x, y, v) their sum is

            s^2 (-log p(x | z, y, v) + beta KL(q || p(z | y, v))) + lambda kernel score,

        where s^2 is the current observation variance, held constant. The gradient by the decoded
        mean is then the residual, whatever s^2 is. In the paper's form the MMD of the minibatch
        takes the place of the kernel score.

        With the exact posterior, no gradient flows through q and its draw z. The KL divergence is
        then estimated by log q(z) - log p(z | y, v), whose gradient reaches the prior and, through
        it, the code.

        Only every ``kernel_every``-th round has draws for the kernel score. The score then has
        ``kernel_every`` times the weight, so that over many rounds the mean weight is lambda.
        """
        code = batch.x[:, :0]  # [N, 0] if clients have no codes
        if self.params.code:
            code = CODE_SCALE[self.params.form] * model.code(batch.layout)
        features = model.features(code)
        prior = model.prior(batch.y, features)
        z, divergence = self.encoded(model, batch, prior)
        decoded = model.decoder(z.unsqueeze(1), batch.y, features).squeeze(1)
        log_var = model.observation(batch.x)
        variance = log_var.detach().exp().squeeze(-1)  # s^2
        parts = {
            "reconstruction": variance * gaussian_nll(batch.x, decoded, log_var),
            "kl": BETA[self.params.form] * variance * divergence,
        }
        if "prior" in batch.draws:
            weight = self.params.kernel * self.params.kernel_every
            parts["kernel"] = weight * self._alignment(model, batch, code)
        return parts

    def _alignment(
        self,
        model: Any,
        batch: Batch,
        code: Tensor,
    ) -> Tensor:
        """Return the kernel score of each example, or the MMD of the batch, ``[N]``.

        Args:
            model: the cohort's model.
            batch: the batch.
            code: the scaled code of each example's client ``[N, code]``.
        """
        draws = batch.draws
        generated = model.generate(
            code,
            batch.y,
            draws["prior"],
            draws["observation"],
        )
        if self.in_paper_form:
            return batch_mmd(batch.x, generated[:, 0]).expand(len(batch))
        return kernel_score(batch.x, generated[:, 0], generated[:, 1])

    def encoded(
        self,
        model: Any,
        batch: Batch,
        prior: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return a draw z ~ q(z | x, y, v) ``[N, latent]`` and KL(q || p(z | y, v)) ``[N]``.

        If q is the exact posterior, the divergence is estimated from this one draw.

        Args:
            model: the cohort's model.
            batch: the batch.
            prior: for each example, the prior's mean ``[N, latent]`` and the root T of its
                precision ``[N, latent, latent]``.
        """
        noise = batch.draws["posterior"]
        if self.params.encoder == "trained":
            mean, log_var = model.encoder(batch.x, batch.y, batch.layout)
            z = sample_posterior(mean, log_var, noise)
            return z, kl_normal(mean, log_var, *prior)
        mean, deviation, density = model.posterior(batch, noise)
        z = mean + deviation
        return z, density + gaussian_nll_root(z, *prior)

    # --- the paper's form ---

    @property
    def in_paper_form(self) -> bool:
        """Whether clients train locally, on two levels, and each is clipped as a whole."""
        return bool(self.params.form == "paper")

    def phases(self) -> tuple[Phase, ...]:
        """Return the phases of DP-SGD, or the rounds of the paper's form.

        In the paper's form, sampling examples does not amplify privacy. Sampling clients does, for
        ``unit: client`` only.
        """
        if not self.in_paper_form:
            return super().phases()
        rate = self.params.client_rate if self.task.unit == "client" else 1.0
        release = Release(RELEASE, rate, self.params.rounds)
        return (Phase(release, partial(paper_round, self), self.server_step, self.broadcast),)

    def clips_clients(self) -> bool:
        """Return whether each client is clipped as a whole: in the paper's form for any unit."""
        return self.in_paper_form or super().clips_clients()

    def sensitivity(self) -> float:
        """Return C, or in the paper's form 2C for an example or group.

        An example or group may turn its client's clipped gradient into any other.
        """
        if self.in_paper_form and self.task.unit != "client":
            return 2 * self.clip()
        return super().sensitivity()

    def check_contract(self, round_: Round, broadcast: Tensors) -> None:
        """Check the contract of DP-SGD; the paper's form assumes nothing about the loss."""
        if not self.in_paper_form:
            super().check_contract(round_, broadcast)

    # --- what the server adds, and the outcome ---

    def public_terms(
        self,
        model: Any,
        stream: torch.Generator,
    ) -> Mapping[str, Tensor]:
        """Return the Lipschitz penalty of the hypernetwork."""
        weight = self.params.lipschitz * CODE_SCALE[self.params.form] ** 2
        if weight:
            return {"lipschitz": weight * model.lipschitz()}
        return {}

    def step_shares(
        self,
        mean: Tensors,
        noise: Deviations,
        state: Tensors,
        *,
        by_client: bool,
    ) -> Tensors | None:
        """Return the factor on each Adam step that removes the part due to noise.

        Without it, parameters whose gradient is drowned in noise would wander. In the paper's form
        the result is None: steps are taken as they are.
        """
        if self.in_paper_form:
            return None
        return signal_shares(mean, noise, state, by_client=by_client)

    def diagnostics(
        self,
        clients: Clients,
        parts: Mapping[str, Tensor],
        round_: Round,
    ) -> Mapping[str, DiagnosticLike]:
        """Return the KL divergence in nats per example, and values of what clients generate.

        The divergence has no values if ``parts`` is empty, as it is in the paper's form. The other
        values are those of the first :data:`SHOWN` clients: the norm of the generated decoder, and
        the joint norm of the generated priors of the first :data:`SHOWN_CLASSES` classes.
        ``cross_client_mmd`` is the spread over these clients of the mean kernel features of one
        generated row for each of these classes. All clients decode the same draws, so the features
        differ by the codes alone.
        """
        with torch.no_grad():
            model: Any = clients.model
            weight = (BETA[self.params.form] * model.observation.variance().double()).float()
            kl: dict[str, DiagnosticLike] = {"kl": parts["kl"] / weight if "kl" in parts else []}
            shown = sum(client < SHOWN for client in clients.members)
            if not shown:
                return kl
            codes = model.codes(len(clients.members))[:shown]
            stream = clients.seeds.torch(Purpose.DIAGNOSTICS, round_.stream)
            generated = self._one_row_per_class(model, codes, stream)
            frequencies = kernel_frequencies(self.task.dim, 128, stream)
            kernel_means = kernel_features(generated, to_device(frequencies, codes.device)).mean(1)
            features = model.features(codes)
            table = model.prior.table(features, SHOWN_CLASSES)
            prior = [parameter.flatten(1) for parameter in table]
            return {
                **kl,
                "generated_decoder_norm": model.decoder.generated_norms(features),
                "generated_prior_norm": torch.cat(prior, 1).norm(dim=1),
                "cross_client_mmd": Diagnostic(kernel_means, "spread"),
            }

    def _one_row_per_class(
        self,
        model: Any,
        codes: Tensor,
        stream: torch.Generator,
    ) -> Tensor:
        """Return one generated row per class for every code ``[K, code]``, ``[K, C, d]``.

        C is the number of the classes that are shown.
        """
        count = len(codes)
        classes = min(self.task.classes, SHOWN_CLASSES)
        latent = normal((classes, 1, self.params.latent), stream, codes)
        observation = normal((classes, 1, self.task.dim), stream, codes)
        generated: Tensor = model.generate(
            codes.repeat_interleave(classes, 0),
            torch.arange(classes, device=codes.device).repeat(count),
            latent.repeat(count, 1, 1),
            observation.repeat(count, 1, 1),
        )
        return generated.view(count, classes, self.task.dim)

    def scope(self) -> str:
        """Return ``hypernetwork`` if only the gradients of the hypernetwork get noise.

        Otherwise, and without codes, it is the word of DP-SGD: ``joint`` or ``shared``.
        """
        if self.params.noised == "shared" and self.params.code:
            return "hypernetwork"
        return super().scope()

    def claim(self) -> Claim:
        """Return the claim of DP-SGD; ``proved`` in the paper's form, which clips whole clients.

        There is one exception in every form: synthesis with the clients' own codes is
        ``heuristic`` if these codes get no noise.
        """
        if not self.releases_codes() and self.params.synthesis == "client":
            return "heuristic"
        if self.in_paper_form:
            return "proved"
        return super().claim()

    def generator(self, server: Server) -> HyperGenerator:
        """Return a generator at the meta-codes, or at the clients' own codes.

        Trained codes are used if they were released: with noise, or at an infinite epsilon. Else
        the codes from which the clients started take their place.
        """
        model: Any = server.model
        if "code.weight" in server.codes:
            client_codes = CODE_SCALE[self.params.form] * server.codes["code.weight"]
        else:
            # These codes are public: they are drawn from the seed and never trained.
            clients = self.task.clients
            start: Any = initial_model(
                self.build,
                server.seeds,
                range(clients),
            )
            client_codes = start.to(server.device).codes(clients)
        if self.params.synthesis == "client":
            return HyperGenerator(model, client_codes, client_codes)
        count = 1
        if self.params.synthesis == "mixture":
            count = min(3, self.task.clients)
        meta_codes = fit_meta_codes(
            model, client_codes, count, self.params.meta_steps, server.seeds
        )
        return HyperGenerator(model, meta_codes, client_codes)
