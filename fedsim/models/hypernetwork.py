"""The shared hypernetwork of FedHypeVAE: it turns a client's code into a decoder and a prior.

The hypernetwork modulates a decoder by row: every output of a decoder layer is scaled and shifted
by linear heads A and B of the code v,

    ``y = (1 + A v) * (W h + b) + B v``,

where h is the layer's input, and W and b are its own weights and bias. This equals the layer with
weights ``diag(1 + A v) W`` and bias ``(1 + A v) b + B v``. In this form the code is an input of
each example, so every per-example gradient is well defined. If the hypernetwork has a hidden layer,
v is the output of that layer.
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
    """A linear layer whose outputs are scaled and shifted by linear heads of the client code.

    The heads start at zero: at first the layer is the plain one for every code. With ``code`` 0 it
    has no heads and stays the plain layer.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        code: int,
    ) -> None:
        super().__init__()
        self.rows = nn.Linear(inputs, outputs)
        self.scale: ZeroLinear | None = None
        self.shift: ZeroLinear | None = None
        if code:
            self.scale = ZeroLinear(code, outputs, bias=False)
            self.shift = ZeroLinear(code, outputs, bias=False)

    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        """Map inputs ``[N, T, in]``, of T draws per example, with codes ``[N, k]``.

        The result is ``[N, T, out]``.
        """
        plain: Tensor = self.rows(h)
        if self.scale is None or self.shift is None:
            return plain
        scale: Tensor = 1 + self.scale(code)
        shift: Tensor = self.shift(code)
        return scale.unsqueeze(1) * plain + shift.unsqueeze(1)

    @torch.no_grad()
    def modulation(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scales and shifts ``[K, out]`` at ``codes`` ``[K, k]``, without gradient."""
        if self.scale is None or self.shift is None:
            zeros = codes.new_zeros(len(codes), self.rows.out_features)
            return 1 + zeros, zeros
        scales = 1 + codes @ self.scale.weight.detach().T
        shifts = codes @ self.shift.weight.detach().T
        return scales, shifts

    def lipschitz(self) -> Tensor:
        """Return the squared Frobenius norm of d(generated weights, generated bias) / dv.

        With r over the rows of the layer, it is the scalar

            sum_r (|A_r|^2 |W_r|^2 + |b_r A_r + B_r|^2).
        """
        if self.scale is None or self.shift is None:
            return self.rows.weight.new_zeros(())
        scale_norms = self.scale.weight.square().sum(1)
        weight_norms = self.rows.weight.square().sum(1)
        by_weight = scale_norms * weight_norms
        scaled_bias = self.rows.bias[:, None] * self.scale.weight
        by_bias = scaled_bias + self.shift.weight
        return by_weight.sum() + by_bias.square().sum()


class ModulatedDecoder(nn.Module):
    """A decoder of x from (z, y, v): modulated layers on [z * latent_scale, one-hot y].

    Embeddings have unit norm, so their entries are of order 1 / sqrt(d). The output is multiplied
    by this factor, so that weights of order one are right for any dimension d. Without a hidden
    layer the decoder is a prototype per class plus a low-rank map of z. This form learns under
    noise.

    Args:
        latent: the dimension of z.
        classes: the number of classes C.
        hidden: the widths of the hidden layers.
        dim: the dimension d of an embedding.
        code: the dimension of the code v; 0 for no modulation.
        latent_scale: the factor on z. The smaller it is, the smaller is the gradient of the map of
            z beside that of the prototypes.
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
        self.layers = nn.ModuleList(
            ModulatedLinear(inputs, outputs, code) for inputs, outputs in pairwise(widths)
        )

    def forward(
        self,
        z: Tensor,
        y: Tensor,
        code: Tensor,
    ) -> Tensor:
        """Map z ``[N, T, latent]``, labels ``[N]`` and codes ``[N, k]`` to means ``[N, T, d]``."""
        label = one_hot(y, self.classes).unsqueeze(1)
        label_of_draw = label.expand(-1, z.shape[1], -1)
        h = torch.cat(
            [z * self.latent_scale, label_of_draw],
            -1,
        )
        for index, layer in enumerate(self.layers):
            if index > 0:
                h = F.relu(h)
            h = layer(h, code)
        return h / math.sqrt(self.dim)

    @torch.no_grad()
    def linear_map(self) -> tuple[Tensor, Tensor]:
        """Return the map of z ``[d, latent]`` and the prototypes ``[C, d]``, without gradient.

        The decoder must not have a hidden layer. Without modulation its mean is
        ``map z + prototypes[y]``.
        """
        (layer,) = self.modulated()
        root = math.sqrt(self.dim)
        weight = layer.rows.weight.detach() / root
        bias = layer.rows.bias.detach() / root
        linear = weight[:, : -self.classes] * self.latent_scale
        prototypes = weight[:, -self.classes :].T
        return linear, prototypes + bias

    @torch.no_grad()
    def start_map(self, outward: Tensor) -> None:
        """Set the map of the first k dimensions of z to ``outward / sqrt(d)``, ``[d, k]``.

        The decoder must not have a hidden layer.
        """
        (layer,) = self.modulated()
        layer.rows.weight[:, : outward.shape[1]] = outward / self.latent_scale

    def lipschitz(self) -> Tensor:
        """Return the sum over the layers of :meth:`ModulatedLinear.lipschitz`, a scalar."""
        by_layer = [layer.lipschitz() for layer in self.modulated()]
        return torch.stack(by_layer).sum()

    @torch.no_grad()
    def generated_norms(self, codes: Tensor) -> Tensor:
        """Return the joint L2 norm of all generated weights and biases for every code, ``[K]``.

        Args:
            codes: the codes ``[K, k]``.
        """
        squared = codes.new_zeros(len(codes))
        for layer in self.modulated():
            scales, shifts = layer.modulation(codes)
            weight_part = scales.square() @ layer.rows.weight.square().sum(1)
            biases = scales * layer.rows.bias + shifts
            squared += weight_part + biases.square().sum(1)
        return squared.sqrt()

    def modulated(self) -> list[ModulatedLinear]:
        """Return the layers as a list; the items of ``nn.ModuleList`` have no exact type."""
        return [layer for layer in self.layers if isinstance(layer, ModulatedLinear)]


class ConditionalPrior(nn.Module):
    """The prior p(z | y, v) = N(mean_y(v), (T^T T)^-1), whose parameters are affine in the code v.

    T is lower triangular with the diagonal exp(-log_var / 2). The parameters of the prior are its
    mean, log_var and the entries of T below the diagonal. Each is the sum of a part that all
    classes share and a part of the class. If noise hides the part of a rare class, the shared part
    remains. The prior starts as N(0, I).

    Args:
        latent: the dimension of z.
        classes: the number of classes C.
        code: the dimension of the code v.
        full: whether T has entries below its diagonal.

    Attributes:
        inputs: the number of inputs of the linear layers, ``(1 + C) (k + 1)`` for a code of
            dimension k. Each input is an entry of (1, one-hot label) times one of (1, code).
    """

    place: Tensor
    """For every entry of T, row by row, the index of its value in ``[0, diagonal, below]``.

    The index 0 is that of entries which are always 0.
    """

    def __init__(
        self,
        latent: int,
        classes: int,
        code: int,
        full: bool = False,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.inputs = (1 + classes) * (code + 1)
        self.mean = ZeroLinear(self.inputs, latent, bias=False)
        self.log_var = ZeroLinear(self.inputs, latent, bias=False)
        self.below: ZeroLinear | None = None
        place = torch.diag(torch.arange(1, latent + 1))
        if full and latent > 1:
            row, column = torch.tril_indices(latent, latent, -1)
            self.below = ZeroLinear(self.inputs, len(row), bias=False)
            place[row, column] = latent + 1 + torch.arange(len(row))
        self.register_buffer("place", place.flatten(), persistent=False)

    def forward(self, y: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean ``[N, latent]`` and T ``[N, latent, latent]``.

        Args:
            y: labels ``[N]``.
            code: codes ``[N, k]``.
        """
        ones = code.new_ones(len(code), 1)
        affine_code = torch.cat([ones, code], 1)
        shared_and_class = torch.cat(
            [ones, one_hot(y, self.classes)],
            1,
        )
        inputs = (shared_and_class.unsqueeze(2) * affine_code.unsqueeze(1)).flatten(1)
        log_var = self.log_var(inputs).clamp(-6, 4)
        diagonal = (-0.5 * log_var).exp()
        entries = [torch.zeros_like(diagonal[:, :1]), diagonal]
        if self.below is not None:
            entries.append(self.below(inputs))
        latent = diagonal.shape[1]
        root = torch.cat(entries, 1).index_select(1, self.place)
        return self.mean(inputs), root.view(-1, latent, latent)

    @torch.no_grad()
    def table(self, codes: Tensor, first: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the prior of every code ``[K, k]`` and class, without gradient.

        Args:
            codes: the codes.
            first: the number of classes in the table: those with the lowest labels. None: all
                classes.

        Returns:
            Means ``[K, classes, latent]`` and roots T ``[K, classes, latent, latent]``.
        """
        classes = self.classes
        if first is not None:
            classes = min(classes, first)
        labels = torch.arange(classes, device=codes.device).repeat(len(codes))
        mean, root = self(
            labels,
            codes.repeat_interleave(classes, 0),
        )
        shape = (len(codes), classes)
        means = mean.view(*shape, -1)
        roots = root.view(*shape, *root.shape[1:])
        return means, roots

    def lipschitz(self) -> Tensor:
        """Return the squared Frobenius norm of d(prior parameters of all classes) / dv."""
        squared = []
        for head in (self.mean, self.log_var, self.below):
            if head is None:
                continue
            weight = head.weight.view(
                len(head.weight),
                1 + self.classes,
                -1,
            )
            by_code = weight[..., 1:]  # the first entry belongs to the constant of (1, code)
            # A class has the sum of the shared part, which comes first, and of its own part.
            of_class = by_code[:, :1] + by_code[:, 1:]
            squared.append(of_class.square().sum())
        return torch.stack(squared).sum()
