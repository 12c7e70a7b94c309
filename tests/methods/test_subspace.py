"""A public subspace: what it is, that it bounds what a row adds, and that every one-shot method can
be in it.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.data.embeddings import PublicRows, unit_norm
from fedsim.methods.one_shot import BASIS_NAME, MEAN_NAME, PublicSubspace, places

DIM = 12
DIRECTIONS = 3


@pytest.fixture
def public() -> PublicRows:
    """Rows that vary most in the first directions."""
    scale = np.linspace(1, 0.05, DIM) ** 2
    x = np.random.default_rng(0).standard_normal((400, DIM)) * scale + 0.5
    return PublicRows(unit_norm(x.astype(np.float32)))


def test_subspace_has_leading_directions_of_public_examples(public: PublicRows) -> None:
    tensors = PublicSubspace.of(public, DIRECTIONS)
    about = public.x - public.x.mean(0)
    _, _, vectors = np.linalg.svd(about, full_matrices=False)
    assert np.allclose(tensors[MEAN_NAME], public.x.mean(0), atol=1e-6)
    basis = tensors[BASIS_NAME].numpy()
    assert np.allclose(basis @ basis.T, vectors[:DIRECTIONS].T @ vectors[:DIRECTIONS], atol=1e-4)


def test_projections_have_norm_at_most_1_and_are_independent(public: PublicRows) -> None:
    subspace = PublicSubspace(PublicSubspace.of(public, DIRECTIONS))
    x = torch.nn.functional.normalize(
        torch.randn(200, DIM, generator=torch.Generator().manual_seed(0)), dim=1
    )
    x[0] = -torch.nn.functional.normalize(
        subspace.mean, dim=0
    )  # as far from the public mean as a row can be
    y = subspace.of_rows(x)
    assert float(y.norm(dim=1).max()) <= 1 + 1e-6
    for some in (*(slice(n, n + 1) for n in range(200)), slice(7, 9), slice(1, 200)):
        assert torch.equal(y[some], subspace.of_rows(x[some]))


class Fixed:
    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        return torch.linspace(-0.3, 0.3, len(labels))[:, None].expand(-1, DIRECTIONS)


def test_a_lifted_row_has_norm_1_and_its_part_in_the_subspace(public: PublicRows) -> None:
    subspace = PublicSubspace(PublicSubspace.of(public, DIRECTIONS))
    labels = torch.tensor([0, 0, 1, 0, 1])
    made = subspace.for_embeddings(Fixed()).sample(labels, torch.Generator().manual_seed(0))
    assert torch.allclose(made.norm(dim=1), torch.ones(5), atol=1e-5)
    assert torch.allclose(
        (made - subspace.mean) @ subspace.basis,
        Fixed().sample(labels, torch.Generator()),
        atol=1e-5,
    )
    outside = made - subspace.rows(Fixed().sample(labels, torch.Generator()))
    alike = torch.nn.functional.cosine_similarity(outside[[0, 1, 0]], outside[[2, 4, 1]], dim=1)
    assert places(labels).tolist() == [0, 1, 0, 2, 1]
    assert (alike[:2] > 0.999).all()
    assert alike[2] < 0.999
