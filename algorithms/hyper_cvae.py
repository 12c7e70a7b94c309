"""The parameters, the model and the generator of FedHypeVAE.

The model has an encoder and a code for every client of a cohort, and the hypernetwork that all
clients share. A cohort is the group of clients that are trained together. The generator decodes at
meta-codes: a few codes whose mixture of generators is close to that of all clients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from fedsim.batch import Batch
from fedsim.device import integers, normal
from fedsim.methods.dp_sgd import DPSGDParams
from fedsim.methods.messages import Tensors
from fedsim.methods.parameters import adam_step
from fedsim.models.cvae import (
    Encoder,
    ObservationNoise,
    SpreadCache,
    linear_posterior,
    lower_inverse,
    posterior_spread,
)
from fedsim.models.hypernetwork import ConditionalPrior, ModulatedDecoder
from fedsim.models.kernel import kernel_score
from fedsim.models.layers import ClientCode
from fedsim.privacy.statistics.spectral import leading, steady
from fedsim.seeds import Purpose, Seeds

NETWORKS: dict[str, Any] = {
    "latent": 32,
    "code": 16,
    "hyper_hidden": 64,
    "encoder": "trained",
    "encoder_hidden": (128,),
    "decoder_hidden": (128,),
    "prior": "diagonal",
    "precondition": 0.0,
    "noised": "shared",
}
"""Defaults of both readings of the paper: its networks, no coordinates, noise on shared gradients.

The paper gives no sizes of networks, so these are ours.
"""
FORMS: dict[str, dict[str, Any]] = {
    "paper": {
        **NETWORKS,
        "kernel": 0.1,
        "kernel_every": 1,
        "rounds": 200,
        "clip": 1.0,
        "learning_rate": 0.03,
        "expected_batch": 10,
    },
    "per-example": NETWORKS,
}
"""The defaults of ``paper`` and ``per-example`` that differ from :class:`FedHypeVAEParams`.

The paper gives no learning rates, so these are ours.
"""
CODE_SCALE = {"default": 0.3, "paper": 1.0, "per-example": 1.0}
"""The factor on the code v before it enters the hypernetwork, by form.

It limits how far clients can differ; the paper has no such factor.
"""
MOST_PAIRS = 4096
"""The largest number of pairs of a client and a class whose priors are computed as a table.

If there are more pairs, most of them have no row in a batch. So the prior is then computed once for
every row. The choice must not depend on the number of rows, which is private. Otherwise one row
could change how all other rows are rounded.
"""
MOST_META_ROWS = 2048
"""About the largest number of rows that are generated in a step of fitting the meta-codes."""
PRIOR_INPUTS_AT_ONCE = 2**25
"""Rows are generated in blocks in which the prior has at most this many inputs."""
BETA = {"default": 0.5, "paper": 1.0, "per-example": 1.0}
"""The weight of KL(q || p(z | y, v)), by form; in the paper's ELBO it is 1.

The exact posterior does not depend on beta. With it, beta only scales the gradients of prior and
codes. Adam undoes a constant scale. So beta only decides how much these gradients weigh inside the
clip and beside other terms of the loss.
"""


class FedHypeVAEParams(DPSGDParams):
    """Parameters of FedHypeVAE.

    Attributes:
        form: ``default`` takes one DP-SGD step per round, clipped for each example. ``paper`` is a
            literal reading of the paper: encoder, decoder and hypernetwork are MLPs. In a round, a
            client takes ``local_steps`` steps on encoder and code. It then computes one gradient of
            the hypernetwork, which is clipped as a whole. The MMD is that of a minibatch. This form
            has no coordinates and no ``sample_rate``, and ``expected_batch`` counts clients.
            ``per-example`` is another reading: the networks of ``paper``, trained in the rounds of
            ``default``. Each example's gradient of the hypernetwork is clipped, and their sum gets
            noise. Encoder and code are trained without noise. So epsilon is heuristic, except for
            ``unit: client``. Both readings have their own defaults (:data:`FORMS`); a parameter
            that you give replaces its default. At a finite epsilon the trained codes stay at the
            clients, and synthesis uses the untrained codes from which they started.
        local_steps: for the paper's form, the number of steps of a client in a round.
        batch_size: for the paper's form, the number of rows in such a step, drawn with replacement.
        hyper_hidden: the width of the hypernetwork's hidden layer; 0 makes scales, shifts and prior
            linear in the code.
        latent: the dimension of z.
        code: the dimension of the client code v; 0 for no hypernetwork, with one decoder and prior
            for all clients.
        encoder: the encoder of z. ``posterior`` is the exact posterior of a decoder without hidden
            layer, given codes and shared parameters: it has nothing to train, so it costs no
            privacy and has no noise. ``trained`` is a network, private to its client, for any
            decoder.
        encoder_hidden: the widths of the trained encoder's hidden layers.
        decoder_hidden: the widths of the decoder's hidden layers; none for a prototype per class
            plus a linear map of z.
        prior: the covariance of the prior, which is conditional on label and code: ``full``, or
            ``diagonal`` for one variance for every dimension of z.
        kernel: the weight of the per-example kernel score (the MMD alignment), as a mean over the
            rounds.
        kernel_every: k: only every k-th round has the kernel score, with k times the weight. The
            numbers of these rounds are public, so privacy is the same for any k. With k = 1
            the kernel score takes about half of the time of a training. ``form: paper`` needs 1.
        lipschitz: the weight of the squared Jacobian norm of the hypernetwork, which reads only
            shared parameters and costs no privacy.
        synthesis: the codes that are decoded: ``neutral`` one meta-code, ``mixture`` three,
            ``client`` a random client's own code for every row.
        meta_steps: the number of Adam steps that fit the meta-codes to the clients' generators.
            They take most of the time of a short training, so checks take fewer.
    """

    form: Literal["default", "paper", "per-example"] = "default"
    local_steps: int = Field(5, ge=1)
    batch_size: int = Field(64, ge=2)
    hyper_hidden: int = Field(0, ge=0)
    latent: int = Field(24, ge=1)
    code: int = Field(4, ge=0)
    encoder: Literal["trained", "posterior"] = "posterior"
    encoder_hidden: tuple[int, ...] = ()
    decoder_hidden: tuple[int, ...] = ()
    prior: Literal["full", "diagonal"] = "full"
    kernel: float = Field(0.005, ge=0)
    kernel_every: int = Field(20, ge=1)
    lipschitz: float = Field(1e-4, ge=0)
    synthesis: Literal["neutral", "mixture", "client"] = "neutral"
    meta_steps: int = Field(50, ge=0)
    rounds: int = Field(100, ge=1)
    clip: float = Field(0.5, gt=0)
    learning_rate: float = Field(0.16, gt=0)
    local_learning_rate: float = Field(0.003, ge=0)
    precondition: float = Field(0.15, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_form(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for form, defaults in FORMS.items():
            if values.get("form") == form:
                return defaults | values
        return values

    @model_validator(mode="after")
    def _parts_that_fit(self) -> FedHypeVAEParams:
        if self.form == "paper" and (
            self.encoder != "trained" or self.precondition or self.kernel_every > 1
        ):
            raise ValueError(
                "form: paper has encoder: trained, precondition: 0 and kernel_every: 1; leave them "
                "out, or give form: default"
            )
        if self.decoder_hidden and self.encoder != "trained":
            raise ValueError(
                "decoder_hidden needs encoder: trained; give encoder: trained, or leave out "
                "decoder_hidden"
            )
        return self


class HyperCVAE(nn.Module):
    """The model of a cohort.

    It has a private encoder and code for every client, the shared hypernetwork, and the variance of
    the likelihood.
    """

    def __init__(
        self,
        params: FedHypeVAEParams,
        dim: int,
        classes: int,
        clients: int,
    ) -> None:
        super().__init__()
        self.params = params
        self.spread = SpreadCache()
        latent = params.latent
        if params.encoder == "trained":
            self.encoder = Encoder(
                dim,
                classes,
                params.encoder_hidden,
                latent,
                clients,
            )
        if params.code:
            self.code = ClientCode(clients, params.code)
        inputs = params.code
        self.hyper: nn.Linear | None = None
        if params.code and params.hyper_hidden:
            self.hyper = nn.Linear(params.code, params.hyper_hidden)
            inputs = params.hyper_hidden
        self.decoder = ModulatedDecoder(
            latent, classes, params.decoder_hidden, dim, inputs, 1 / math.sqrt(latent)
        )
        self.prior = ConditionalPrior(
            latent,
            classes,
            inputs,
            full=params.prior == "full",
        )
        # The initial observation noise has half of the squared norm of an embedding, which is 1.
        self.observation = ObservationNoise(0.5 / dim)

    def codes(self, clients: int) -> Tensor:
        """Return the scaled codes of the cohort's ``clients`` ``[K, code]``, without gradient."""
        if not self.params.code:
            return self.observation.shift.weight.new_zeros(clients, 0)
        return CODE_SCALE[self.params.form] * self.code.weight.detach()

    def features(self, codes: Tensor) -> Tensor:
        """Return the hypernetwork's hidden layer at scaled codes ``[N, code]``.

        All generated parameters are linear in this layer. Without it, the codes are returned.
        """
        if self.hyper is None:
            return codes
        return F.relu(self.hyper(codes))

    def lipschitz(self) -> Tensor:
        """Return the squared Frobenius norm of d(generated decoder and prior) / dv.

        With a hidden layer it is a bound, the product of the norms of both layers.
        """
        outer = self.decoder.lipschitz() + self.prior.lipschitz()
        if self.hyper is None:
            return outer
        return self.hyper.weight.square().sum() * outer

    @torch.no_grad()
    def posterior(
        self,
        batch: Batch,
        noise: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, deviation and log density of a draw from the exact posterior.

        None of them has a gradient (Fisher's identity, as in EM). They are the results of
        :func:`fedsim.models.cvae.linear_posterior`, which gives their shapes.

        Args:
            batch: the batch of N examples.
            noise: standard normal draws ``[N, latent]``.
        """
        features = self.features(self.codes(batch.layout.clients))
        linear, prototypes = self.decoder.linear_map()
        (layer,) = self.decoder.modulated()
        scales, shifts = layer.modulation(features)
        variance = self.observation.variance()
        client = batch.layout.client
        shift = shifts[client] / math.sqrt(self.decoder.dim)
        offset = scales[client] * prototypes[batch.y] + shift
        # The table depends on parameters alone. So under vmap (``direct``), where every row is
        # computed alone, it is computed only once.
        if batch.layout.direct or len(features) * self.prior.classes <= MOST_PAIRS:
            group = torch.stack([client, batch.y])
            prior = self.prior.table(features)
            root = self.spread.get(
                self, lambda: posterior_spread(linear, scales, prior[1], variance)
            )
        else:
            # Every row counts as a client of its own that has one class.
            row = torch.arange(len(client), device=client.device)
            group = torch.stack([row, torch.zeros_like(row)])
            scales = scales[client]
            mean, precision_root = self.prior(batch.y, features[client])
            prior = mean.unsqueeze(1), precision_root.unsqueeze(1)
            root = posterior_spread(linear, scales, prior[1], variance)
        return linear_posterior(
            batch.x - offset, group, linear, scales, prior, variance, root, noise
        )

    def generate(
        self,
        code: Tensor,
        y: Tensor,
        latent: Tensor,
        observation: Tensor,
    ) -> Tensor:
        """Return rows x ~ p(x | z) p(z | y, v), ``[N, T, d]``.

        Args:
            code: scaled codes ``[N, code]``.
            y: labels ``[N]``.
            latent: standard normal draws ``[N, T, latent]``.
            observation: standard normal draws ``[N, T, d]``.
        """
        features = self.features(code)
        mean, root = self.prior(y, features)
        z = mean.unsqueeze(1) + latent @ lower_inverse(root).mT
        decoded: Tensor = self.decoder(z, y, features)
        std: Tensor = (0.5 * self.observation(mean)).exp()
        return decoded + std.unsqueeze(1) * observation


def fit_meta_codes(
    model: Any,
    codes: Tensor,
    count: int,
    steps: int,
    seeds: Seeds,
) -> Tensor:
    """Return ``count`` codes whose mixture of generators is closest to that of the clients.

    Closeness is measured by the kernel score. The clients are ordered along the first principal
    direction of the codes, or by their numbers if no direction is the first. They are cut into
    ``count`` groups, whose mean codes are the initial meta-codes. This costs no privacy: it reads
    only the released hypernetwork and released codes, or public initial codes if none were
    released.

    Args:
        model: the model with the hypernetwork.
        codes: the clients' scaled codes ``[K, k]``.
        count: the number of meta-codes.
        steps: the number of Adam steps.
        seeds: the seed tree.
    """
    if codes.shape[1] == 0:
        return codes[:count]
    stream = seeds.torch(Purpose.META)
    meta = _initial_meta_codes(codes, count)
    meta.requires_grad_(True)
    classes = model.decoder.classes
    rows = classes * min(16, max(1, MOST_META_ROWS // classes))
    y = torch.arange(rows, device=codes.device) % classes
    state = Tensors()
    for step in range(steps):
        client = integers(len(codes), (rows,), stream, codes)
        first_code, second_code = integers(count, (2, rows), stream, codes)
        # Draws for the target, the first and the second generated row.
        latent = [normal((rows, 1, model.params.latent), stream, codes) for _ in range(3)]
        observation = [normal((rows, 1, model.decoder.dim), stream, codes) for _ in range(3)]
        with torch.no_grad():
            target = model.generate(
                codes[client],
                y,
                latent[0],
                observation[0],
            )
        first = model.generate(
            meta[first_code],
            y,
            latent[1],
            observation[1],
        )
        second = model.generate(
            meta[second_code],
            y,
            latent[2],
            observation[2],
        )
        score = kernel_score(target[:, 0], first[:, 0], second[:, 0]).mean()
        (gradient,) = torch.autograd.grad(score, meta)
        learning_rate = 0.02 * (1 - step / steps)
        adam_step({"meta": meta}, {"meta": gradient}, state, learning_rate)
    return meta.detach()


def _initial_meta_codes(codes: Tensor, count: int) -> Tensor:
    """Return the means of ``count`` groups of codes along their first principal direction."""
    centred = codes - codes.mean(0)
    _, direction = leading(centred.T @ centred, 1, 0.0)
    projection = (centred.double() @ steady(direction)).sum(1)
    order = torch.argsort(projection, stable=True)
    return torch.stack([codes[group].mean(0) for group in order.tensor_split(count)])


@dataclass(frozen=True, eq=False)
class HyperGenerator:
    """A generator that decodes each row at a code that is drawn uniformly from several.

    Attributes:
        model: the model with the hypernetwork.
        codes: the codes to draw from ``[M, k]``.
        client_codes: the clients' codes as released, or those from which they started ``[K, k]``.
    """

    model: Any
    codes: Tensor
    client_codes: Tensor

    def of_client(self, client: int) -> HyperGenerator:
        """Return the generator at a client's own code."""
        code = self.client_codes[client : client + 1]
        return HyperGenerator(self.model, code, code)

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Return synthetic embeddings ``[n, d]`` for labels ``[n]``."""
        with torch.no_grad():
            rows = len(labels)
            code_of_row = integers(len(self.codes), (rows,), stream, labels)
            latent = normal(
                (rows, 1, self.model.params.latent),
                stream,
                labels,
            )
            observation = normal(
                (rows, 1, self.model.decoder.dim),
                stream,
                labels,
            )
            codes = self.codes[code_of_row]
            # The prior's inputs are one-hot, so with a thousand classes they need most memory.
            size = max(1, PRIOR_INPUTS_AT_ONCE // self.model.prior.inputs)
            # Without a row there is one empty block, which gives the result its shape.
            blocks = zip(
                torch.split(codes, size),
                torch.split(labels, size),
                torch.split(latent, size),
                torch.split(observation, size),
                strict=True,
            )
            generated = [self.model.generate(*block) for block in blocks]
            return torch.cat(generated)[:, 0]
