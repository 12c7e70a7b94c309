"""A last bit of a matrix changes its directions by about a last bit, also at ties and gaps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import seeded
from torch import Tensor
from torch.testing import assert_close

from fedsim.privacy.statistics import moments, spectral
from fedsim.privacy.statistics.spectral import batches, leading, square_root, steady, ties

DIM = 12


def orthonormal(rows: int, columns: int, stream: torch.Generator) -> Tensor:
    draws = torch.randn(rows, columns, generator=stream)
    return torch.linalg.qr(draws.double()).Q


def turned(values: list[float]) -> Tensor:
    """Return a symmetric matrix with these eigenvalues, in random directions."""
    size = len(values)
    vectors = orthonormal(
        size,
        size,
        seeded(0),
    )
    return (vectors * torch.tensor(values).double()) @ vectors.T


def jittered(matrix: Tensor, seed: int) -> Tensor:
    """Move every entry by up to a last bit of float32."""
    uniform = torch.rand(
        matrix.shape,
        generator=seeded(seed),
    )
    moved = matrix * (1 + 2**-23 * (uniform.double() * 2 - 1))
    return (moved + moved.T) / 2


SMALL = [0.5, 0.4, 0.3, 0.2, 0.1, 0.05]
SPECTRA = {
    "distinct": [9.0, 7.0, 5.0, 3.0, 2.0, 1.0, *SMALL],
    "ties within": [9.0, 9.0, 9.0, 3.0, 2.0, 1.0, *SMALL],
    "a tie at the cut": [9.0, 7.0, 5.0, 3.0, 3.0, 1.0, *SMALL],
    "all alike": [2.0] * DIM,
}


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_principal_directions_do_not_turn_with_a_last_bit(spectrum: str) -> None:
    matrix = turned(SPECTRA[spectrum])
    basis, within, rest = moments.principal(
        matrix.float(),
        0.0,
        4,
    )
    for seed in range(20):
        moved = jittered(matrix, seed).float()
        other_basis, other_within, other_rest = moments.principal(
            moved,
            0.0,
            4,
        )
        assert_close(other_basis, basis, atol=1e-4, rtol=0)
        assert_close(other_within, within, atol=1e-4, rtol=0)
        assert other_rest == pytest.approx(rest, rel=1e-4)


@pytest.mark.parametrize(
    ("spectrum", "most", "floor", "taken"),
    [
        ("a tie at the cut", 4, 0.0, 3),
        ("a tie at the cut", 5, 0.0, 5),
        ("all alike", 4, 0.0, 0),
        ("distinct", 4, 6.0, 2),
    ],
)
def test_all_or_none_of_close_eigenvalues_are_taken(
    spectrum: str,
    most: int,
    floor: float,
    taken: int,
) -> None:
    values, _ = leading(
        turned(SPECTRA[spectrum]),
        most,
        floor,
    )
    assert len(values) == taken


def test_ties_number_groups_of_close_eigenvalues() -> None:
    values = torch.tensor([9.0, 9.0, 8.9, 3.0, 2.999, 1.0])
    assert ties(values).tolist() == [0, 0, 1, 2, 2, 3]


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), count=st.integers(0, DIM))
def test_steady_basis_is_orthonormal_and_depends_on_its_span_alone(seed: int, count: int) -> None:
    stream = seeded(seed)
    span = orthonormal(DIM, count, stream)
    turn = orthonormal(count, count, stream)
    basis = steady(span)
    assert_close(basis.T @ basis, torch.eye(count).double())
    assert_close(basis @ basis.T, span @ span.T)
    assert_close(
        steady(span @ turn),
        basis,
        atol=1e-6,
        rtol=0,
    )


def test_batches_of_matrices_are_small_views_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral, "NUMBERS_AT_ONCE", 3 * 4**2)
    matrices = torch.randn(7, 4, 4)
    parts = batches(matrices)
    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat(parts), matrices)
    assert parts[1].data_ptr() == matrices[3].data_ptr()


def test_a_large_matrix_is_a_batch_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral, "NUMBERS_AT_ONCE", 10)
    assert [len(part) for part in batches(torch.zeros(2, 4, 4))] == [1, 1]


def test_roots_of_many_matrices_are_those_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = torch.stack([turned([1.0, 4.0]), turned([9.0, 2.0]), turned([3.0, 1.0])])
    monkeypatch.setattr(spectral, "NUMBERS_AT_ONCE", 8)
    roots = square_root(matrices)
    assert_close(roots @ roots, matrices)
