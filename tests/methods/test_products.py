"""What an algorithm yields says itself what it is."""

import torch

from fedsim.methods.messages import Diagnostic
from fedsim.methods.products import is_personal, own, shortened


class Rows:
    """Three rows of norm 5, 1 and 0.5, whatever is asked for."""

    def sample(self, labels: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
        return torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.3, 0.4]])


class OwnRows(Rows):
    def of_client(self, client: int) -> Rows:
        return Rows()


def test_shortened_scales_only_rows_that_are_too_long() -> None:
    expected = torch.tensor([[0.72, 0.96], [0.6, 0.8], [0.3, 0.4]])
    for made in (shortened(Rows()), own(shortened(OwnRows()), 1)):
        torch.testing.assert_close(made.sample(torch.zeros(3), torch.Generator()), expected)  # type: ignore[union-attr]
    assert [is_personal(shortened(made)) for made in (Rows(), OwnRows())] == [False, True]


def test_a_diagnostic_is_reduced_as_it_says() -> None:
    parts = [[1.0, 2.0], [6.0]]
    assert Diagnostic.reduced([Diagnostic(part) for part in parts]) == 3.0
    assert Diagnostic.reduced([Diagnostic(part, "quantiles") for part in parts])[2] == 2.0
    # pairs (0,0)-(3,4), (0,0)-(0,0), (3,4)-(0,0): squared distances 25, 0, 25
    assert (
        abs(
            Diagnostic.reduced([Diagnostic([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]], "spread")])
            - 50 / 3
        )
        < 1e-12
    )
    empty = [
        Diagnostic.reduced([Diagnostic([])]),
        Diagnostic.reduced([Diagnostic([], "quantiles")]),
        Diagnostic.reduced([Diagnostic([[1.0]], "spread")]),
    ]
    assert empty == [None, [], None]
