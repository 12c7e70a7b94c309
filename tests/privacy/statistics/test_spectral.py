"""A last bit of a matrix changes what is read off it by about a last bit, at ties, signs and gaps
too.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.privacy.statistics import moments
from fedsim.privacy.statistics.spectral import leading, steady, ties

DIM = 12


def turned(values: list[float], seed: int = 0) -> torch.Tensor:
    """A symmetric matrix with these eigenvalues, in random directions."""
    vectors = torch.linalg.qr(
        torch.randn(
            len(values), len(values), generator=torch.Generator().manual_seed(seed)
        ).double()
    ).Q
    return (vectors * torch.tensor(values).double()) @ vectors.T


def jittered(matrix: torch.Tensor, seed: int) -> torch.Tensor:
    """Every entry moved by up to a last bit of float32."""
    noise = torch.rand(matrix.shape, generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
    moved = matrix * (1 + 2**-23 * noise)
    return (moved + moved.T) / 2


SPECTRA = {
    "distinct": [9.0, 7.0, 5.0, 3.0, 2.0, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05],
    "ties within": [9.0, 9.0, 9.0, 3.0, 2.0, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05],
    "a tie at the cut": [9.0, 7.0, 5.0, 3.0, 3.0, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05],
    "all alike": [2.0] * DIM,
}


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_principal_directions_do_not_turn_with_a_last_bit(spectrum: str) -> None:
    matrix = turned(SPECTRA[spectrum])
    basis, within, rest = moments.principal(matrix.float(), 0.0, 4)
    for seed in range(20):
        other = moments.principal(jittered(matrix, seed).float(), 0.0, 4)
        torch.testing.assert_close(other[0], basis, atol=1e-4, rtol=0)
        torch.testing.assert_close(other[1], within, atol=1e-4, rtol=0)
        assert other[2] == pytest.approx(rest, rel=1e-4)


def test_of_eigenvalues_that_are_too_close_all_or_none_are_taken() -> None:
    assert len(leading(turned(SPECTRA["a tie at the cut"]), 4, 0.0)[0]) == 3
    assert len(leading(turned(SPECTRA["a tie at the cut"]), 5, 0.0)[0]) == 5
    assert len(leading(turned(SPECTRA["all alike"]), 4, 0.0)[0]) == 0
    assert len(leading(turned(SPECTRA["distinct"]), 4, 6.0)[0]) == 2
    assert ties(torch.tensor([9.0, 9.0, 8.9, 3.0, 2.999, 1.0])).tolist() == [0, 0, 1, 2, 2, 3]


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), count=st.integers(0, DIM))
def test_a_steady_basis_is_orthonormal_and_depends_on_its_span_alone(seed: int, count: int) -> None:
    stream = torch.Generator().manual_seed(seed)
    span = torch.linalg.qr(torch.randn(DIM, count, generator=stream).double()).Q
    turn = torch.linalg.qr(torch.randn(count, count, generator=stream).double()).Q
    basis = steady(span)
    torch.testing.assert_close(basis.T @ basis, torch.eye(count).double())
    torch.testing.assert_close(basis @ basis.T, span @ span.T)
    torch.testing.assert_close(steady(span @ turn), basis, atol=1e-6, rtol=0)
