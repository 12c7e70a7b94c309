"""The shared hypernetwork of FedHypeVAE: a client code becomes that client's decoder and class-conditional prior.

Row-scaled modulation: every row of a decoder layer is scaled and shifted by linear heads of the code v,
``y = (1 + A v) * (W h + b) + B v``, which is the layer with weights ``diag(1 + A v) W`` and bias ``(1 + A v) b + B v``, written so that the
code is a per-example input and every per-example gradient is well defined.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.models.layers import ZeroLinear, one_hot

LEAST_SCALE = 0.05
"""Of a row whose noise is scaled with it: a likelihood without noise would be unbounded."""


class ModulatedLinear(nn.Module):
    """A linear layer whose rows are scaled and shifted by linear heads of the client code; without a code, the plain layer.

    The heads start at zero: for every code the generated layer starts as the plain one.
    """

    def __init__(self, inputs: int, outputs: int, code: int) -> None:
        super().__init__()
        self.rows = nn.Linear(inputs, outputs)
        self.scale = ZeroLinear(code, outputs, bias=False) if code else None
        self.shift = ZeroLinear(code, outputs, bias=False) if code else None

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
        """Squared Frobenius norm of d(generated weights, generated bias) / dv: ``sum_r |A_r|^2 |W_r|^2 + |b_r A_r + B_r|^2``."""
        if self.scale is None or self.shift is None:
            return self.rows.weight.new_zeros(())
        by_weight = self.scale.weight.square().sum(1) * self.rows.weight.square().sum(1)
        by_bias = self.rows.bias[:, None] * self.scale.weight + self.shift.weight
        return by_weight.sum() + by_bias.square().sum()


class ModulatedDecoder(nn.Module):
    """x from (z, y, v): modulated layers on [z * latent_scale, one-hot y], times 1 / sqrt(d) at the end.

    Without a hidden layer it is a prototype per class plus a low-rank map of z, the parametrisation that learns under noise. Embeddings
    have unit norm, so after the 1 / sqrt(d) weights of order one are right for any dimension.

    Args:
        latent: dimension of z.
        classes: number of labels.
        hidden: widths of the hidden layers.
        dim: d, the embedding's dimension.
        code: dimension of the client code; 0: no modulation.
        latent_scale: factor on z, which sets z's share of the gradient against the prototypes'.
        class_maps: z enters once more through one-hot y times z: every class's map of z is the shared one plus a deviation of its own.
    """

    def __init__(
        self,
        latent: int,
        classes: int,
        hidden: Sequence[int],
        dim: int,
        code: int,
        latent_scale: float = 1.0,
        class_maps: bool = False,
    ) -> None:
        super().__init__()
        self.classes, self.latent_scale, self.dim, self.class_maps = classes, latent_scale, dim, class_maps
        widths = [latent * (1 + classes if class_maps else 1) + classes, *hidden, dim]
        self.layers = nn.ModuleList(ModulatedLinear(a, b, code) for a, b in pairwise(widths))

    def forward(self, z: Tensor, y: Tensor, code: Tensor) -> Tensor:
        """``[N, T, latent]``, labels ``[N]`` and codes ``[N, k]`` to ``[N, T, d]``."""
        onehot = one_hot(y, self.classes).unsqueeze(1).expand(-1, z.shape[1], -1)
        z = z * self.latent_scale
        own = [(onehot.unsqueeze(3) * z.unsqueeze(2)).flatten(2)] if self.class_maps else []
        h = torch.cat([z, *own, onehot], -1)
        for index, layer in enumerate(self.layers):
            h = layer(h if index == 0 else F.relu(h), code)
        return h / math.sqrt(self.dim)

    def row_scale(self, code: Tensor) -> Tensor:
        """Size of the last layer's row scales at codes ``[N, k]``, at least :data:`LEAST_SCALE`: ``[N, d]``."""
        last = self.modulated()[-1]
        scale = 1 + last.scale(code) if last.scale is not None else code.new_ones(len(code), self.dim)
        return scale.abs().clamp_min(LEAST_SCALE)

    @torch.no_grad()
    def linear_maps(self) -> tuple[Tensor, Tensor]:
        """Maps and prototypes of a decoder without hidden layer, unmodulated: x = map z + prototypes[y]; constants.

        Maps are ``[C, d, latent]``, one a class, or ``[1, d, latent]`` where all classes have the same; prototypes ``[C, d]``.
        """
        (layer,) = self.modulated()
        weight = layer.rows.weight.detach() / math.sqrt(self.dim)
        maps, prototypes = weight[:, : -self.classes] * self.latent_scale, weight[:, -self.classes :]
        by_class = maps.reshape(self.dim, 1 + self.classes if self.class_maps else 1, -1).transpose(0, 1)
        if self.class_maps:
            by_class = by_class[:1] + by_class[1:]
        return by_class, prototypes.T + layer.rows.bias.detach() / math.sqrt(self.dim)

    def lipschitz(self) -> Tensor:
        """Sum over the layers of the squared norm of their Jacobian by the code."""
        return torch.stack([layer.lipschitz() for layer in self.modulated()]).sum()

    @torch.no_grad()
    def generated_norms(self, codes: Tensor) -> Tensor:
        """L2 norm of what is generated for every code ``[K, k]``: weights and biases of all layers, ``[K]``."""
        squared = codes.new_zeros(len(codes))
        for layer in self.modulated():
            scales, shifts = layer.modulation(codes)
            squared += scales.square() @ layer.rows.weight.square().sum(1) + (scales * layer.rows.bias + shifts).square().sum(1)
        return squared.sqrt()

    def modulated(self) -> list[ModulatedLinear]:
        """The layers, typed."""
        return [layer for layer in self.layers if isinstance(layer, ModulatedLinear)]


class ConditionalPrior(nn.Module):
    """p(z | y, v) = N(mean_y(v), diag exp(log_var_y(v))), both affine in the code, per class; starts as N(0, I)."""

    def __init__(self, latent: int, classes: int, code: int) -> None:
        super().__init__()
        self.classes = classes
        self.mean = ZeroLinear(classes * (code + 1), latent, bias=False)
        self.log_var = ZeroLinear(classes * (code + 1), latent, bias=False)

    def forward(self, y: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """Labels ``[N]`` and codes ``[N, k]`` to mean and log variance ``[N, latent]``."""
        onehot = one_hot(y, self.classes)
        affine = torch.cat([code.new_ones(len(code), 1), code], 1)
        chosen = (onehot.unsqueeze(2) * affine.unsqueeze(1)).flatten(1)
        return self.mean(chosen), self.log_var(chosen).clamp(-6, 4)

    @torch.no_grad()
    def table(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance for every code ``[K, k]`` and class as constants, ``[K, C, latent]`` each."""
        affine = torch.cat([codes.new_ones(len(codes), 1), codes], 1)
        weights = [head.weight.detach().view(len(head.weight), self.classes, -1) for head in (self.mean, self.log_var)]
        mean, log_var = (torch.einsum("lck,nk->ncl", weight, affine) for weight in weights)
        return mean, log_var.clamp(-6, 4)

    def lipschitz(self) -> Tensor:
        """Squared Frobenius norm of d(prior parameters of all classes) / dv."""
        by_code = [head.weight.view(head.weight.shape[0], self.classes, -1)[..., 1:] for head in (self.mean, self.log_var)]
        return torch.stack([part.square().sum() for part in by_code]).sum()
