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
        clip: The largest norm C of one example's gradient. Adam's steps do not depend on the size
            of C, so a small C only gives all examples the same influence.
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

    # Results and `fedsim algorithms` cite this source. The base class clips gradients, adds noise
    # and counts ε. You state that the loss is per example, so the claim is `stated`; with the
    # parameter `noised: shared` it is `heuristic`. `fedsim check --run FOLDER` notes in the column
    # `check` whether it found a mistake.
    source = "Kingma and Welling 2014, arXiv 1312.6114; Sohn et al. 2015"
    Params = MyMethodParams

    # The model may contain Linear, the layers of fedsim.models.layers, and any function of one
    # example. It may not contain BatchNorm (which mixes examples), Dropout (which draws its own
    # random numbers) or anything that remembers examples. ClientLinear and ClientCode have one set
    # of weights or one code per client; all other layers are shared. fedsim sets the initial
    # weights afterwards, from the seed.
    def build(self, clients: int) -> nn.Module:
        """Return a CVAE whose decoder is a prototype per class plus a linear map of z.

        The decoder is so simple because few directions can be learned well under noise.
        """
        p = self.params
        return CVAE(
            self.task.dim,
            self.task.classes,
            p.latent,
            p.hidden,
            (),  # the decoder has no hidden layers
            initial_variance=0.5 / self.task.dim,
        )

    # Ask here for the standard normal numbers that `loss` needs, and read them from `batch.draws`.
    # Never draw random numbers inside `loss`.
    def draws(self) -> Mapping[str, tuple[int, ...]]:
        """Ask for one draw of z per example."""
        return {"posterior": (self.params.latent,)}

    # The loss of example n may depend on example n alone: on no mean or statistic of the batch, and
    # on no pair of examples. fedsim clips the gradient of every example, so a loss that mixes
    # examples breaks the privacy proof (`fedsim check` finds that). Examples have norm 1.
    def loss(self, model: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Return the two parts of the negative ELBO by name, [N] each.

        Both are multiplied by the observation variance, so that the size of a gradient does not
        depend on it.
        """
        decoded, kl = model(batch.x, batch.y, batch.draws["posterior"])
        log_variance = model.observation(batch.x)
        unit = log_variance.detach().exp().squeeze(-1)
        return {
            "reconstruction": unit * gaussian_nll(batch.x, decoded, log_variance),
            "kl": self.params.beta * unit * kl,
        }

    # You can also define `public_terms(model, stream)`: terms of the loss that read only shared
    # parameters. They cost no privacy.

    # The generator may read the server but no example. The server's model, tensors and client codes
    # (`server.codes`) carry the noise already. A method that predicts has a method `classifier`
    # instead, which returns an object with probabilities(x) -> [n, C].
    def generator(self, server: Server) -> CVAEGenerator:
        """Return a generator that decodes z ~ N(0, I) and adds the observation noise.

        Its method sample(labels, stream) returns embeddings [n, d]. Its weights are the mean over
        the second half of the training.
        """
        return CVAEGenerator(cast(CVAE, server.model))
