"""Products with a version per client, rows of limited length, and reduced diagnostics."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.methods.messages import Diagnostic
from fedsim.methods.products import Chart, for_embeddings, is_personal, own, shortened
from fedsim.models.linear import LinearClassifier, LocalClassifiers


class Rows:
    """A generator of three rows of norm 5, 1 and 0.5."""

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        return torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.3, 0.4]])


class OwnRows(Rows):
    def of_client(self, client: int) -> Rows:
        return Rows()


def test_shortened_scales_only_rows_that_are_too_long() -> None:
    expected = torch.tensor([[0.72, 0.96], [0.6, 0.8], [0.3, 0.4]])
    for made in (shortened(Rows()), own(shortened(OwnRows()), 1)):
        rows = made.sample(
            torch.zeros(3),
            torch.Generator(),
        )  # type: ignore[union-attr]
        torch.testing.assert_close(rows, expected)


def test_shortened_keeps_the_versions_of_clients() -> None:
    assert is_personal(shortened(OwnRows()))
    assert not is_personal(shortened(Rows()))


class Doubled(Chart):
    """Coordinates that are twice the embeddings."""

    def of_rows(self, x: Tensor) -> Tensor:
        return 2 * x


def test_classifiers_of_coordinates_keep_the_versions_of_clients() -> None:
    x = torch.eye(2)
    classifiers = [LinearClassifier(weight, torch.zeros(2)) for weight in (x, -x)]
    product = for_embeddings(LocalClassifiers(classifiers), Doubled())
    second = own(product, 1).probabilities(x)  # type: ignore[union-attr]
    torch.testing.assert_close(second, classifiers[1].probabilities(2 * x))


def reduced(reduction: Any, *parts: Any) -> Any:
    return Diagnostic.reduced([Diagnostic(part, reduction) for part in parts])


def test_diagnostics_are_reduced_over_all_parts() -> None:
    assert reduced("mean", [1.0, 2.0], [6.0]) == 3.0
    assert reduced("quantiles", [1.0, 2.0], [6.0])[2] == 2.0
    # The squared distances of the three pairs are 25, 0 and 25.
    assert reduced("spread", [[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]) == pytest.approx(50 / 3)


def test_diagnostics_without_enough_values_have_no_reduction() -> None:
    assert reduced("mean", []) is None
    assert reduced("quantiles", []) == []
    assert reduced("spread", [[1.0]]) is None
