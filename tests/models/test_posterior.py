import pytest
import torch

from fedsim.models.cvae import inverse_root
from fedsim.seeds import Purpose, Seeds


def positive_matrices() -> torch.Tensor:
    stream = Seeds(0).torch(Purpose.META)
    square = torch.randn(
        3,
        5,
        5,
        generator=stream,
        dtype=torch.float64,
    )
    return square @ square.mT + torch.eye(5, dtype=torch.float64)


def test_inverse_root_is_a_root_of_the_inverse() -> None:
    precision = positive_matrices()
    root = inverse_root(precision)
    torch.testing.assert_close(root @ root.mT, torch.linalg.inv(precision))


def test_matrix_that_is_not_positive_definite_is_refused() -> None:
    with pytest.raises(ValueError, match="not positive definite"):
        inverse_root(-positive_matrices())
