"""FedHypeVAE's parameters, the model of a cohort, and the generator that is made of it, at codes
that stand for all clients'.
"""

from __future__ import annotations

import math
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

PAPER_FORM: dict[str, Any] = {
    "latent": 32,
    "code": 16,
    "hyper_hidden": 64,
    "encoder": "trained",
    "encoder_hidden": (128,),
    "decoder_hidden": (128,),
    "prior": "diagonal",
    "kernel": 0.1,
    "rounds": 200,
    "clip": 1.0,
    "learning_rate": 0.03,
    "expected_batch": 10,
    "precondition": 0.0,
    "noised": "shared",
}
"""What ``form: paper`` changes of the defaults; sizes and rates are ours, since the paper gives
none.
"""
CODE_SCALE = {"default": 0.3, "paper": 1.0}
"""Factor on v before it enters the hypernetwork, by form: how far clients can differ; the paper has
none.
"""
BETA = {"default": 0.5, "paper": 1.0}
"""Weight of KL(q || p(z | y, v)), by form; the paper's is the ELBO's.

With the exact posterior, which does not read it, it scales the gradient of prior and codes alone.
Adam undoes a constant scale, so it weights that gradient inside the clip and beside other terms.
"""


class FedHypeVAEParams(DPSGDParams):
    """Parameters of FedHypeVAE.

    Attributes:
        form: ``paper``, a literal reading of the paper: encoder and decoder are MLPs, the
            hypernetwork, too; a round at a client is ``local_steps`` steps on encoder and code,
            then one gradient by the hypernetwork, clipped for the client as a whole; the MMD is a
            minibatch's. It has defaults of its own (``PAPER_FORM``), no coordinates, codes that
            stay at their clients (synthesis uses the untrained ones that they started from), no
            ``sample_rate``, and counts clients in ``expected_batch``. ``default``: one DP-SGD step
            a round, clipped for each example.
        local_steps, batch_size: of the paper's form: steps of a client in a round, and rows of a
            step, drawn with replacement.
        hyper_hidden: width of the hypernetwork's hidden layer; 0: scales, shifts and prior are
            linear in the code.
        latent: dimension of z.
        code: dimension of the client code v; 0: no hypernetwork, one decoder and prior for all
            clients.
        encoder: of z. ``posterior``: the exact posterior of a decoder without hidden layer, given
            codes and shared parameters: nothing to train, so no privacy cost and no noise.
                ``trained``: a network, private to its client, whatever the decoder is.
        encoder_hidden: widths of the trained encoder's hidden layers.
        decoder_hidden: widths of the decoder's; none means a prototype per class plus a linear map
            of z.
        prior: conditional on label and code; ``full``: with a full covariance; ``diagonal``: one
            variance for every dimension of z.
        kernel: weight of the per-example kernel score (the MMD alignment).
        lipschitz: weight of the squared Jacobian norm of the hypernetwork (on shared parameters
            alone, free of privacy cost).
        synthesis: ``neutral`` decodes one meta-code, ``mixture`` three, ``client`` for every row a
            client's own code at random.
        meta_steps: Adam steps that fit the meta-codes to the clients' generators: most of a short
            training's time, so checks take fewer.
    """

    form: Literal["default", "paper"] = "default"
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
    def _defaults_of_the_form(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("form") == "paper":
            return PAPER_FORM | given
        return given

    @model_validator(mode="after")
    def _parts_that_fit(self) -> FedHypeVAEParams:
        if self.form == "paper" and (self.encoder != "trained" or self.precondition):
            raise ValueError(
                "form: paper has encoder: trained and precondition: 0; leave both out, or "
                "give form: default"
            )
        if self.decoder_hidden and self.encoder != "trained":
            raise ValueError(
                "decoder_hidden is not empty; give encoder: trained, any other needs a "
                "decoder without hidden layers"
            )
        return self


class HyperCVAE(nn.Module):
    """A cohort's model: private encoders and codes (one per client), the shared hypernetwork, the
    likelihood's variance.
    """

    def __init__(self, params: FedHypeVAEParams, dim: int, classes: int, clients: int) -> None:
        super().__init__()
        self.params = params
        self.spread = SpreadCache()
        if params.encoder == "trained":
            self.encoder = Encoder(dim, classes, params.encoder_hidden, params.latent, clients)
        if params.code:
            self.code = ClientCode(clients, params.code)
        self.hyper: nn.Linear | None = None
        if params.code and params.hyper_hidden:
            self.hyper = nn.Linear(params.code, params.hyper_hidden)
        if self.hyper is None:
            inputs = params.code
        else:
            inputs = params.hyper_hidden
        self.decoder = ModulatedDecoder(
            params.latent, classes, params.decoder_hidden, dim, inputs, 1 / math.sqrt(params.latent)
        )
        self.prior = ConditionalPrior(params.latent, classes, inputs, full=params.prior == "full")
        self.observation = ObservationNoise(
            0.5 / dim
        )  # before it is learned: half of what a row of unit norm has

    def codes(self, clients: int) -> Tensor:
        """The scaled codes of the cohort's ``clients``, constants ``[K, code]``."""
        if not self.params.code:
            return self.observation.shift.weight.new_zeros(clients, 0)
        return CODE_SCALE[self.params.form] * self.code.weight.detach()

    def features(self, codes: Tensor) -> Tensor:
        """The hypernetwork's hidden layer at scaled codes ``[N, code]``, in which what it generates
        is linear; else the codes.
        """
        if self.hyper is None:
            return codes
        return F.relu(self.hyper(codes))

    def lipschitz(self) -> Tensor:
        """Squared Frobenius norm of d(generated decoder and prior) / dv; with a hidden layer the
        product of the layers' norms, a bound.
        """
        outer = self.decoder.lipschitz() + self.prior.lipschitz()
        if self.hyper is None:
            return outer
        return self.hyper.weight.square().sum() * outer

    @torch.no_grad()
    def posterior(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The exact posterior's mean, a draw's deviation from it ``[N, latent]`` each, its log
        density ``[N]``.

        Constants to the gradient (Fisher's identity, as in EM).
        """
        codes = self.features(self.codes(batch.layout.clients))
        linear, prototypes = self.decoder.linear_map()
        (layer,) = self.decoder.modulated()
        scales, shifts = layer.modulation(codes)
        client = batch.layout.client
        prior = self.prior.table(codes)
        variance = self.observation.variance()
        root = self.spread.get(self, lambda: posterior_spread(linear, scales, prior[1], variance))
        offset = scales[client] * prototypes[batch.y] + shifts[client] / math.sqrt(self.decoder.dim)
        group = torch.stack([client, batch.y])
        return linear_posterior(
            batch.x - offset, group, linear, scales, prior, variance, root, noise
        )

    def generate(self, code: Tensor, y: Tensor, latent: Tensor, observation: Tensor) -> Tensor:
        """Rows x ~ p(x | z) p(z | y, v) from standard normal draws ``[N, T, latent]`` and ``[N, T,
        d]``; scaled codes ``[N, code]``.
        """
        code = self.features(code)
        mean, root = self.prior(y, code)
        z = mean.unsqueeze(1) + latent @ lower_inverse(root).mT
        decoded: Tensor = self.decoder(z, y, code)
        made: Tensor = decoded + (0.5 * self.observation(mean)).exp().unsqueeze(1) * observation
        return made


def fit_meta_codes(model: Any, codes: Tensor, count: int, steps: int, seeds: Seeds) -> Tensor:
    """``count`` codes whose mixture of generators is closest, in kernel score, to the mixture of
    the clients' generators.

    Reads only codes that were released, or public initial ones where none were, scaled, ``[K, k]``,
    and the private-already hypernetwork: post-processing, no privacy cost. The meta-codes start at
    the means of ``count`` groups of clients along the codes' first principal direction, or in the
    clients' order where there is no first one.
    """
    if codes.shape[1] == 0:
        return codes[:count]
    centred = codes - codes.mean(0)
    _, direction = leading(centred.T @ centred, 1, 0.0)
    order = torch.argsort((centred.double() @ steady(direction)).sum(1), stable=True)
    meta = torch.stack([codes[group].mean(0) for group in order.tensor_split(count)])
    stream = seeds.torch(Purpose.META)
    rows = 16 * model.decoder.classes
    state = Tensors()
    y = torch.arange(rows, device=codes.device) % model.decoder.classes
    meta.requires_grad_(True)
    for step in range(steps):
        client = integers(len(codes), (rows,), stream, codes)
        picked = integers(count, (2, rows), stream, codes)
        draws = [
            normal((rows, 1, size), stream, codes)
            for size in (model.params.latent, model.decoder.dim)
            for _ in range(3)
        ]
        with torch.no_grad():
            target = model.generate(codes[client], y, draws[0], draws[3])[:, 0]
        first, second = (
            model.generate(meta[picked[i]], y, draws[1 + i], draws[4 + i])[:, 0] for i in (0, 1)
        )
        (gradient,) = torch.autograd.grad(kernel_score(target, first, second).mean(), meta)
        adam_step({"meta": meta}, {"meta": gradient}, state, 0.02 * (1 - step / steps))
    return meta.detach()


class HyperGenerator:
    """Samples x for labels, each row with one of ``codes`` ``[M, k]`` drawn uniformly; ``own``
    ``[K, k]`` are the clients' codes as released, else those they started from.
    """

    def __init__(self, model: Any, codes: Tensor, own: Tensor) -> None:
        self.model = model
        self.codes = codes
        self.own = own

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
