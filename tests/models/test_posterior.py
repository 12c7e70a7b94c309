import pytest
import torch

from fedsim.models.cvae import inverse_root
from fedsim.seeds import Purpose, Seeds


def test_the_root_of_an_inverse_is_that_and_no_matrix_passes_that_has_none() -> None:
    square = torch.randn(3, 5, 5, generator=Seeds(0).torch(Purpose.META), dtype=torch.float64)
    precision = square @ square.mT + torch.eye(5, dtype=torch.float64)
    root = inverse_root(precision)
    torch.testing.assert_close(root @ root.mT, torch.linalg.inv(precision))
    with pytest.raises(ValueError, match="not positive definite"):
        inverse_root(-precision)
