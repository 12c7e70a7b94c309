"""My method: a conditional VAE under DP-SGD.

Change what you like. This file is the whole method, and it runs without edits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import Field
from torch import Tensor, nn

from fedsim.methods import (
    CVAE,
    DPSGD,
    Batch,
    CVAEGenerator,
    DPSGDParams,
    Server,
    gaussian_nll,
    register,
)


class MyMethodParams(DPSGDParams):
    """The parameters that a grid may set under `params:` or `scan:`.

    DPSGDParams adds rounds, sample_rate, clip, learning_rate and others.

    Attributes:
        rounds: The number of noisy steps.
        clip: The largest norm C of one example's gradient. Adam does not see its size, so a small C
            only makes all examples count alike.
        latent: The dimension of z.
        hidden: The widths of the encoder's hidden layers.
        beta: The weight of the KL divergence.
    """

    rounds: int = Field(150, ge=1)
    clip: float = Field(0.1, gt=0)
    latent: int = Field(8, ge=1)
    hidden: tuple[int, ...] = (32,)
    beta: float = Field(0.5, ge=0)


@register("my-method")
class MyMethod(DPSGD):
    """One encoder and one decoder for all clients, trained on every example's negative ELBO."""

    # What rows and `fedsim algorithms` cite. The claim is `stated`; the column `check` says how
    # `fedsim check --run` ended. The base class
    # clips, noises and counts, and that the loss is per example is your word; `noised: shared` is
    # `heuristic`.
    source = "Kingma and Welling 2014, arXiv 1312.6114; Sohn et al. 2015"
    Params = MyMethodParams

    # The model may contain Linear, the layers of fedsim.models.layers, and any function of one row.
    # It may not
    # contain BatchNorm (it mixes rows), Dropout (it draws random numbers of its own) or anything
    # that remembers rows. ClientLinear and
    # ClientCode have a weight set or a code for each of `clients`; the rest is shared. Initial
    # weights are set afterwards, from the seed.
    def build(self, clients: int) -> nn.Module:
        """Return a CVAE whose decoder is a prototype per class plus a linear map of z.

        Under noise, few directions are learned well.
        """
        p = self.params
        return CVAE(
            self.task.dim,
            self.task.classes,
            p.latent,
            p.hidden,
            (),
            initial_variance=0.5 / self.task.dim,
        )

    # Where random numbers come from: ask for standard normal draws here, read them from
    # `batch.draws`. Never draw inside `loss`.
    def draws(self) -> Mapping[str, tuple[int, ...]]:
        """Ask for one draw of z per example."""
        return {"posterior": (self.params.latent,)}

    # Row n of every part may depend on row n of the batch alone: no mean over the batch, no
    # statistic of it, no pair of rows. One row's
    # gradient is what is clipped, so a loss that mixes rows would void the proof (`fedsim check`
    # finds that). Rows have unit norm.
    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Return the negative ELBO, [N] per part, in units of the observation variance.

        The size of the gradient then does not follow that variance.
        """
        decoded, kl = model(batch.x, batch.y, batch.draws["posterior"])
        log_variance = model.observation(batch.x)
        unit = log_variance.detach().exp().squeeze(-1)
        return {
            "reconstruction": unit * gaussian_nll(batch.x, decoded, log_variance),
            "kl": self.params.beta * unit * kl,
        }

    # Free of privacy cost, if you need it: `public_terms(model, stream)` returns terms that read
    # shared parameters alone.

    # The generator may read the server and never a row of data: its model and tensors carry the
    # noise already, as do `server.codes`,
    # those of clients that have some. A method that predicts has `classifier` in its place: an
    # object with probabilities(x) -> [n, C].
    def generator(self, server: Server) -> CVAEGenerator:
        """Return a generator that decodes z ~ N(0, I) and adds the observation noise.

        It has sample(labels, stream) -> [n, d], and uses the mean of the later iterates.
        """
        return CVAEGenerator(cast(CVAE, server.model))
