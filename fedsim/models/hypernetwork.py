"""The shared hypernetwork of FedHypeVAE: a client code becomes that client's decoder and class-conditional prior.

Row-scaled modulation: every row of a decoder layer is scaled and shifted by linear heads of the code v,
``y = (1 + A v) * (W h + b) + B v``, which is the layer with weights ``diag(1 + A v) W`` and bias ``(1 + A v) b + B v``, written so that the
code is a per-example input and every per-example gradient is well defined.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.models.layers import ZeroLinear, one_hot


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
        return (1 + self.scale(code)).unsqueeze(1) * plain + self.shift(code).unsqueeze(1)

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
        latent, classes, dim, code: sizes of z, of the one-hot label, of x (d) and of the client code (0: no modulation by a code).
        hidden: widths of the hidden layers.
        latent_scale: factor on z, which sets z's share of the gradient against the prototypes'.
    """

    def __init__(self, latent: int, classes: int, hidden: Sequence[int], dim: int, code: int, latent_scale: float = 1.0) -> None:
        super().__init__()
        self.classes, self.latent_scale, self.dim = classes, latent_scale, dim
        widths = [latent + classes, *hidden, dim]
        self.layers = nn.ModuleList(ModulatedLinear(a, b, code) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, z: Tensor, y: Tensor, code: Tensor) -> Tensor:
        """``[N, T, latent]``, labels ``[N]`` and codes ``[N, k]`` to ``[N, T, d]``."""
        onehot = one_hot(y, self.classes).unsqueeze(1).expand(-1, z.shape[1], -1)
        h = torch.cat([z * self.latent_scale, onehot], -1)
        for index, layer in enumerate(self.layers):
            h = layer(h if index == 0 else F.relu(h), code)
        return h / math.sqrt(self.dim)

    def lipschitz(self) -> Tensor:
        """Sum over the layers of the squared norm of their Jacobian by the code."""
        return torch.stack([layer.lipschitz() for layer in self.modulated()]).sum()

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
        affine = torch.cat([torch.ones_like(code[:, :1]), code], 1)
        chosen = (onehot.unsqueeze(2) * affine.unsqueeze(1)).flatten(1)
        return self.mean(chosen), self.log_var(chosen).clamp(-6, 4)

    def lipschitz(self) -> Tensor:
        """Squared Frobenius norm of d(prior parameters of all classes) / dv."""
        by_code = [head.weight.view(head.weight.shape[0], self.classes, -1)[..., 1:] for head in (self.mean, self.log_var)]
        return torch.stack([part.square().sum() for part in by_code]).sum()
