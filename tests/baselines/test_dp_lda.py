"""The heads' own mathematics; their releases are those of fedhypevae-warm, whose tests have the
statistics' sensitivity.
"""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.naive_bayes import GaussianNB

from baselines.dp_lda import DPLDA, DPLDAParams
from fedsim.methods import Seeds, Server, Task

DIM = 5
CLASSES = 3


def classes_apart(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes of equal size, of other spreads and means, about (1, ..., 1)."""
    stream = torch.Generator().manual_seed(0)
    y = torch.arange(rows) % CLASSES
    roots = torch.eye(DIM) + 0.2 * torch.randn(CLASSES, DIM, DIM, generator=stream)
    x = torch.einsum("nd,nde->ne", torch.randn(rows, DIM, generator=stream), roots[y])
    return 1 + x + torch.randn(CLASSES, DIM, generator=stream)[y], y


def head(name: str, x: torch.Tensor, y: torch.Tensor) -> Any:
    """The head of exact moments of the rows, in a block of all directions."""
    about = x - 1
    covariances = torch.stack(
        [torch.cov(about[y == label].T, correction=0) for label in range(CLASSES)]
    )
    tensors = {
        "mean": torch.ones(DIM),
        "basis": 2 * torch.eye(DIM),
        "radius": torch.tensor(2.0),
        "prior_means": torch.stack([about[y == label].mean(0) for label in range(CLASSES)]),
        "prior_covariances": covariances,
    }
    algorithm = DPLDA(
        DPLDAParams.model_validate({"head": name, "ridge": 1e-6}), Task(DIM, CLASSES, 1)
    )
    return algorithm.classifier(Server(torch.nn.Module(), Seeds(0), tensors))


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("lda", LinearDiscriminantAnalysis(solver="lsqr", priors=np.full(CLASSES, 1 / CLASSES))),
        ("qda", QuadraticDiscriminantAnalysis(priors=np.full(CLASSES, 1 / CLASSES))),
        ("naive-bayes", GaussianNB(priors=np.full(CLASSES, 1 / CLASSES))),
    ],
)
def test_of_exact_moments_a_head_is_the_textbooks(name: str, known: Any) -> None:
    x, y = classes_apart(3000)
    expected = known.fit(x.double().numpy(), y.numpy()).predict_proba(x.double().numpy())
    torch.testing.assert_close(
        head(name, x, y).probabilities(x).double(), torch.from_numpy(expected), atol=1e-2, rtol=0
    )
