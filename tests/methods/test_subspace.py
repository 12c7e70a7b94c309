"""A public subspace: what it is, what bounds a projected row, and how rows are lifted from it."""

import numpy as np
import pytest
import torch
from streams import seeded
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from torch.testing import assert_close

from fedsim.data.embeddings import PublicRows, unit_norm
from fedsim.methods.one_shot import BASIS_NAME, MEAN_NAME, PublicSubspace, places

DIM = 12
DIRECTIONS = 3


@pytest.fixture
def public() -> PublicRows:
    """Return rows that vary most in the first directions."""
    scale = np.linspace(1, 0.05, DIM) ** 2
    x = np.random.default_rng(0).standard_normal((400, DIM)) * scale + 0.5
    return PublicRows(unit_norm(x.astype(np.float32)))


@pytest.fixture
def subspace(public: PublicRows) -> PublicSubspace:
    return PublicSubspace(PublicSubspace.of(public, DIRECTIONS))


def test_subspace_has_leading_directions_of_public_examples(public: PublicRows) -> None:
    tensors = PublicSubspace.of(public, DIRECTIONS)
    mean = public.x.mean(0)
    _, _, vectors = np.linalg.svd(public.x - mean, full_matrices=False)
    leading = vectors[:DIRECTIONS]
    basis = tensors[BASIS_NAME].numpy()
    assert np.allclose(tensors[MEAN_NAME], mean, atol=1e-6)
    assert np.allclose(basis @ basis.T, leading.T @ leading, atol=1e-4)


@pytest.fixture
def private(subspace: PublicSubspace) -> Tensor:
    """Return unit rows; the first is as far from the public mean as a row can be."""
    x = torch.randn(
        200,
        DIM,
        generator=seeded(0),
    )
    x[0] = -subspace.mean
    return normalize(x, dim=1)


def test_projections_have_norm_at_most_1(subspace: PublicSubspace, private: Tensor) -> None:
    norms = subspace.of_rows(private).norm(dim=1)
    assert float(norms.max()) <= 1 + 1e-6


def test_projections_are_independent_of_each_other(
    subspace: PublicSubspace, private: Tensor
) -> None:
    projections = subspace.of_rows(private)
    single_rows = [slice(n, n + 1) for n in range(len(private))]
    for part in (*single_rows, slice(7, 9), slice(1, None)):
        assert torch.equal(subspace.of_rows(private[part]), projections[part])


LABELS = torch.tensor([0, 0, 1, 0, 1])
PROJECTIONS = torch.linspace(-0.3, 0.3, len(LABELS))[:, None].expand(-1, DIRECTIONS)


class Fixed:
    """A generator of projections."""

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        return PROJECTIONS


@pytest.fixture
def lifted(subspace: PublicSubspace) -> Tensor:
    stream = seeded(0)
    return subspace.for_embeddings(Fixed()).sample(LABELS, stream)


def test_lifted_rows_have_norm_1(lifted: Tensor) -> None:
    assert_close(
        lifted.norm(dim=1),
        torch.ones(5),
        atol=1e-5,
        rtol=0,
    )


def test_lifted_rows_keep_their_projection(subspace: PublicSubspace, lifted: Tensor) -> None:
    inside = (lifted - subspace.mean) @ subspace.basis
    assert_close(inside, PROJECTIONS, atol=1e-5, rtol=0)


def test_rows_at_one_place_of_their_labels_share_the_rest(
    subspace: PublicSubspace, lifted: Tensor
) -> None:
    outside = lifted - subspace.rows(PROJECTIONS)
    assert places(LABELS).tolist() == [0, 1, 0, 2, 1]
    assert cosine_similarity(outside[0], outside[2], dim=0) > 0.999
    assert cosine_similarity(outside[1], outside[4], dim=0) > 0.999
    assert cosine_similarity(outside[0], outside[1], dim=0) < 0.999
