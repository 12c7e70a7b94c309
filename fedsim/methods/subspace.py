"""A public subspace: rows about the mean of public rows, in the directions in which these vary most.

Mean and directions are numbers of public rows alone, so they are free, and of a few directions a release needs less noise in all. How a
private row lies outside of them is not released; a generated row is given a length of 1, which every row has, by a part outside that says
nothing of its class. Of OrganAMNIST's rows in directions of BloodMNIST, parts of the public covariance did worse: private rows vary more
than public ones where these do not, and a probe that has seen little of it mistakes it for signal (docs/public.md).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsim.data.embeddings import PublicRows
from fedsim.device import normal
from fedsim.methods.messages import Tensors
from fedsim.methods.products import CoordinateClassifier, Product, is_classifier, mapped
from fedsim.privacy.statistics import exact
from fedsim.privacy.statistics.spectral import descending, steady

MEAN_NAME, BASIS_NAME = "public.mean", "public.basis"
"""Tensors of a server that hold the subspace."""


class PublicSubspace:
    """``y = B^T (x - mean)``, clipped to norm 1, and the way back ``x = mean + B y``; B ``[d, k]`` orthonormal."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.mean, self.basis = tensors[MEAN_NAME], tensors[BASIS_NAME]

    @staticmethod
    def of(public: PublicRows, directions: int) -> Tensors:
        """The leading directions of the covariance of public rows, as a server keeps them."""
        x = public.rows().double()
        about = x - x.mean(0)
        _, vectors = descending(about.T @ about)
        return {MEAN_NAME: x.mean(0).float(), BASIS_NAME: steady(vectors[:, :directions]).float()}

    @staticmethod
    def held(tensors: Mapping[str, Tensor]) -> Tensors:
        """The subspace among a server's tensors; none where there is none."""
        return {name: tensors[name] for name in (MEAN_NAME, BASIS_NAME) if name in tensors}

    def of_rows(self, x: Tensor) -> Tensor:
        """Rows ``[N, k]`` of norm at most 1, of embeddings ``[N, d]``, each by itself to the last bit: their distances are counted."""
        r = exact.products(x - self.mean, self.basis.T)
        return (r / exact.squares(r).sqrt().clamp_min(1.0)).float()

    def rows(self, r: Tensor) -> Tensor:
        """Embeddings ``[N, d]`` in the subspace."""
        return self.mean + r @ self.basis.T

    def for_embeddings(self, made: Product) -> Product:
        """What was made of rows in the subspace, for embeddings."""
        return CoordinateClassifier(made, self) if is_classifier(made) else mapped(made, self.lift)

    def lift(self, rows: Tensor, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Rows ``[n, k]`` of ``labels`` as embeddings of norm 1 ``[n, d]``; the part outside the subspace is white noise.

        Rows at the same place among those of their label share it: over the classes it then cancels, and a probe does not take it for a
        difference of classes.
        """
        inside, place, basis = self.rows(rows), places(labels), self.basis
        white = normal((int(place.max()) + 1 if len(place) else 0, inside.shape[1]), stream, labels)[place]
        outside = white - (white @ basis) @ basis.T
        along, square = (inside * outside).sum(1, keepdim=True), outside.square().sum(1, keepdim=True).clamp_min(1e-12)
        missing = 1 - inside.square().sum(1, keepdim=True)
        # the positive root c of |inside + c outside| = 1; none where the part inside is longer
        length = ((along.square() + square * missing).clamp_min(0).sqrt() - along) / square
        return inside + length.clamp_min(0) * outside


def places(labels: Tensor) -> Tensor:
    """The place of every row among the rows of its label, in their order ``[n]``."""
    order = torch.argsort(labels, stable=True)
    sorted_labels, found = labels[order], torch.empty_like(order)
    found[order] = torch.arange(len(labels), device=labels.device) - torch.searchsorted(sorted_labels, sorted_labels)
    return found
