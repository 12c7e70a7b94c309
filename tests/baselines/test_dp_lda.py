"""The heads' own mathematics; their releases are tested with fedhypevae-warm."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.naive_bayes import GaussianNB
from streams import seeded
from torch import Tensor

from baselines.dp_lda import DPLDA, DPLDAParams
from fedsim.methods import Seeds, Server, Task

DIM = 5
CLASSES = 3


def classes_apart(rows: int) -> tuple[Tensor, Tensor]:
    """Classes of equal size with their own spreads and means, about (1, ..., 1)."""
    stream = seeded(0)
    y = torch.arange(rows) % CLASSES
    roots = torch.eye(DIM) + 0.2 * torch.randn(CLASSES, DIM, DIM, generator=stream)
    white = torch.randn(rows, DIM, generator=stream)
    means = torch.randn(CLASSES, DIM, generator=stream)
    return 1 + torch.einsum("nd,nde->ne", white, roots[y]) + means[y], y


def head(name: str, x: Tensor, y: Tensor) -> Any:
    """The head of exact moments of the rows, in a block of all directions."""
    of_classes = [x[y == label] - 1 for label in range(CLASSES)]
    covariances = [torch.cov(rows.T, correction=0) for rows in of_classes]
    tensors = {
        "mean": torch.ones(DIM),
        "basis": 2 * torch.eye(DIM),
        "radius": torch.tensor(2.0),
        "prior_means": torch.stack([rows.mean(0) for rows in of_classes]),
        "prior_covariances": torch.stack(covariances),
    }
    params = DPLDAParams.model_validate({"head": name, "ridge": 1e-6})
    algorithm = DPLDA(params, Task(DIM, CLASSES, 1))
    return algorithm.classifier(Server(torch.nn.Module(), Seeds(0), tensors))


EQUAL = np.full(CLASSES, 1 / CLASSES)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("lda", LinearDiscriminantAnalysis(solver="lsqr", priors=EQUAL)),
        ("qda", QuadraticDiscriminantAnalysis(priors=EQUAL)),
        ("naive-bayes", GaussianNB(priors=EQUAL)),
    ],
)
def test_a_head_of_exact_moments_is_the_textbooks_classifier(
    name: str,
    known: Any,
) -> None:
    x, y = classes_apart(3000)
    rows = x.double().numpy()
    expected = known.fit(rows, y.numpy()).predict_proba(rows)
    found = head(name, x, y).probabilities(x).double()
    torch.testing.assert_close(
        found,
        torch.from_numpy(expected),
        atol=1e-2,
        rtol=0,
    )
