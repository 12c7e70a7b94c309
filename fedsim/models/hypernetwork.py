"""The shared hypernetwork of FedHypeVAE: a client code becomes that client's decoder and
class-conditional prior.

Row-scaled modulation: every row of a decoder layer is scaled and shifted by linear heads of the
code v, ``y = (1 + A v) * (W h + b) + B v``, which is the layer with weights ``diag(1 + A v) W`` and
bias ``(1 + A v) b + B v``, written so that the code is a per-example input and every per-example
gradient is well defined.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.models.layers import ZeroLinear, one_hot


class ModulatedLinear(nn.Module):
    """A linear layer whose rows are scaled and shifted by linear heads of the client code; without
    a code, the plain layer.

    The heads start at zero: for every code the generated layer starts as the plain one.
    """

    def __init__(self, inputs: int, outputs: int, code: int) -> None:
        super().__init__()
        self.rows = nn.Linear(inputs, outputs)
        self.scale: ZeroLinear | None = None
        self.shift: ZeroLinear | None = None
        if code:
            self.scale = ZeroLinear(code, outputs, bias=False)
            self.shift = ZeroLinear(code, outputs, bias=False)

    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        """``[N, T, in]`` and codes ``[N, k]`` to ``[N, T, out]``."""
        plain: Tensor = self.rows(h)
        if self.scale is None or self.shift is None:
            return plain
        scale: Tensor = 1 + self.scale(code)
        shift: Tensor = self.shift(code)
        return scale.unsqueeze(1) * plain + shift.unsqueeze(1)

    @torch.no_grad()
    def modulation(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Row scales and shifts of ``codes`` ``[K, k]`` as constants, ``[K, out]`` each."""
        if self.scale is None or self.shift is None:
            zeros = codes.new_zeros(len(codes), self.rows.out_features)
            return 1 + zeros, zeros
        return 1 + codes @ self.scale.weight.detach().T, codes @ self.shift.weight.detach().T

    def lipschitz(self) -> Tensor:
        """Squared Frobenius norm of d(generated weights, generated bias) / dv: ``sum_r |A_r|^2
        |W_r|^2 + |b_r A_r + B_r|^2``.
        """
        if self.scale is None or self.shift is None:
            return self.rows.weight.new_zeros(())
        by_weight = self.scale.weight.square().sum(1) * self.rows.weight.square().sum(1)
        by_bias = self.rows.bias[:, None] * self.scale.weight + self.shift.weight
        return by_weight.sum() + by_bias.square().sum()


class ModulatedDecoder(nn.Module):
    """x from (z, y, v): modulated layers on [z * latent_scale, one-hot y], times 1 / sqrt(d) at the
    end.

    Without a hidden layer it is a prototype per class plus a low-rank map of z, the parametrisation
    that learns under noise. Embeddings have unit norm, so after the 1 / sqrt(d) weights of order
    one are right for any dimension d. ``code`` 0 is no modulation; ``latent_scale`` sets z's share
    of the gradient against the prototypes'.
    """

    def __init__(
        self,
        latent: int,
        classes: int,
        hidden: Sequence[int],
        dim: int,
        code: int,
        latent_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.latent_scale = latent_scale
        self.dim = dim
        widths = [latent + classes, *hidden, dim]
        self.layers = nn.ModuleList(ModulatedLinear(a, b, code) for a, b in pairwise(widths))

    def forward(self, z: Tensor, y: Tensor, code: Tensor) -> Tensor:
        """``[N, T, latent]``, labels ``[N]`` and codes ``[N, k]`` to ``[N, T, d]``."""
        onehot = one_hot(y, self.classes).unsqueeze(1).expand(-1, z.shape[1], -1)
        h = torch.cat([z * self.latent_scale, onehot], -1)
        for index, layer in enumerate(self.layers):
            h = layer(h if index == 0 else F.relu(h), code)
        return h / math.sqrt(self.dim)

    @torch.no_grad()
    def linear_map(self) -> tuple[Tensor, Tensor]:
        """``[d, latent]`` and ``[C, d]`` without hidden layer, unmodulated: x = linear_map z +
        prototypes[y]; constants.
        """
        (layer,) = self.modulated()
        weight = layer.rows.weight.detach() / math.sqrt(self.dim)
        latent = weight[:, : -self.classes] * self.latent_scale
        prototypes = weight[:, -self.classes :]
        return latent, prototypes.T + layer.rows.bias.detach() / math.sqrt(self.dim)

    @torch.no_grad()
    def start_map(self, outward: Tensor) -> None:
        """Let a decoder without hidden layer map the first k dimensions of z by ``outward /
        sqrt(d)``, ``[d, k]``.
        """
        (layer,) = self.modulated()
        layer.rows.weight[:, : outward.shape[1]] = outward / self.latent_scale

    def lipschitz(self) -> Tensor:
        """Sum over the layers of the squared norm of their Jacobian by the code."""
        return torch.stack([layer.lipschitz() for layer in self.modulated()]).sum()

    @torch.no_grad()
    def generated_norms(self, codes: Tensor) -> Tensor:
        """L2 norm of what is generated for every code ``[K, k]``: weights and biases of all layers,
        ``[K]``.
        """
        squared = codes.new_zeros(len(codes))
        for layer in self.modulated():
            scales, shifts = layer.modulation(codes)
            squared += scales.square() @ layer.rows.weight.square().sum(1) + (
                scales * layer.rows.bias + shifts
            ).square().sum(1)
        return squared.sqrt()

    def modulated(self) -> list[ModulatedLinear]:
        """The layers, typed."""
        return [layer for layer in self.layers if isinstance(layer, ModulatedLinear)]


class ConditionalPrior(nn.Module):
    """p(z | y, v) = N(mean_y(v), (T^T T)^-1), T lower triangular with diagonal exp(-log_var / 2),
    all affine in the code.

    Each is a part that all classes share plus the class's own: of a rare class noise hides what it
    has of its own. Starts as N(0, I). Without ``full`` T is diagonal.
    """

    place: Tensor

    def __init__(self, latent: int, classes: int, code: int, full: bool = False) -> None:
        super().__init__()
        self.classes = classes
        inputs = (1 + classes) * (code + 1)
        self.mean, self.log_var = (ZeroLinear(inputs, latent, bias=False) for _ in range(2))
        below = torch.tril_indices(latent, latent, -1)
        self.below: ZeroLinear | None = None
        if full:
            self.below = ZeroLinear(inputs, below.shape[1], bias=False)
        place = torch.diag(torch.arange(1, latent + 1))
        if full:
            place[below[0], below[1]] = latent + 1 + torch.arange(below.shape[1])
        else:
            place[below[0], below[1]] = 0
        self.register_buffer("place", place.flatten(), persistent=False)

    def forward(self, y: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """Labels ``[N]`` and codes ``[N, k]`` to mean ``[N, latent]`` and T ``[N, latent,
        latent]``.
        """
        affine = torch.cat([code.new_ones(len(code), 1), code], 1)
        shared_and_own = torch.cat([code.new_ones(len(code), 1), one_hot(y, self.classes)], 1)
        chosen = (shared_and_own.unsqueeze(2) * affine.unsqueeze(1)).flatten(1)
        diagonal = (-0.5 * self.log_var(chosen).clamp(-6, 4)).exp()
        parts = [
            torch.zeros_like(diagonal[:, :1]),
            diagonal,
            *([] if self.below is None else [self.below(chosen)]),
        ]
        latent = diagonal.shape[1]
        return self.mean(chosen), torch.cat(parts, 1).index_select(1, self.place).view(
            -1, latent, latent
        )

    @torch.no_grad()
    def table(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``[K, C, latent]`` and T ``[K, C, latent, latent]`` for every code ``[K, k]`` and
        class as constants.
        """
        labels = torch.arange(self.classes, device=codes.device)
        mean, root = self(labels.repeat(len(codes)), codes.repeat_interleave(self.classes, 0))
        return mean.view(len(codes), self.classes, -1), root.view(
            len(codes), self.classes, *root.shape[1:]
        )

    def lipschitz(self) -> Tensor:
        """Squared Frobenius norm of d(prior parameters of all classes) / dv."""
        heads = [head for head in (self.mean, self.log_var, self.below) if head is not None]
        by_code = [
            head.weight.view(head.weight.shape[0], 1 + self.classes, -1)[..., 1:] for head in heads
        ]
        return torch.stack([(part[:, :1] + part[:, 1:]).square().sum() for part in by_code]).sum()
