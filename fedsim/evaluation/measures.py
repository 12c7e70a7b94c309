"""What a cell is scored by: of each measure the formula, the title, and where it is shown. One more
is one more entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LabelShares = Literal["released", "uniform"]
"""Which labels plain accuracy is from: as frequent as the algorithm released them under its budget,
or equally frequent.
"""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Test rows as one predictor predicts them.

    Attributes:
        y: true labels, int64 ``[m]``.
        predicted: labels, int64 ``[m]``.
        probabilities: of the classes, ``[m, C]``.
        shares: how frequent each class is with the client that predicts, ``[C]``; None where it is
            no single client.
    """

    y: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.floating]
    shares: NDArray[np.float64] | None = None

    @property
    def held(self) -> NDArray[np.int64]:
        """Classes of the test rows, without those that the client does not hold."""
        classes = np.unique(self.y)
        if self.shares is None:
            return classes
        return classes[self.shares[classes] > 0]


@dataclass(frozen=True)
class Measure:
    """One number a cell, the same for every algorithm.

    Attributes:
        title: what its table is called.
        of: whose predictions it is computed from. ``all``: of all test rows, by the probe or
            classifier that everyone has (the mean over clients with classifiers of their own);
            ``clients``: each client's of its own test rows, by its own classifier or the probe on
            its own generator's embeddings; ``personal``: each client's of its own test rows, the
            mean over clients.
        score: the number, None where such predictions have none; None in its place where it comes
            from elsewhere.
        column: its head in the page's list of cells; "" leaves it out.
        table: whether it has a table of its own in the page, once a row has it.
        terminal: whether a terminal shows that table, too.
        references: what stands beside it: a name, and the column of a row that has its number.
        best: what the best number would be; infinite: the larger the better; None: none is best.
        least, most: what it can be.
        fidelity: whether the picture of fidelity shows it.
    """

    title: str
    of: Literal["all", "clients", "personal"]
    score: Callable[[Predictions], float | None] | None = None
    column: str = ""
    table: bool = False
    terminal: bool = False
    references: tuple[tuple[str, str], ...] = ()
    best: float | None = math.inf
    least: float = 0.0
    most: float = 1.0
    fidelity: bool = False


def accuracy(of: Predictions) -> float:
    """Share of the rows that are predicted right."""
    return float(np.mean(of.predicted == of.y))


def balanced_accuracy(of: Predictions) -> float:
    """Mean recall over the held classes; a class that is never predicted counts as 0."""
    from sklearn.metrics import recall_score

    return float(recall_score(of.y, of.predicted, labels=of.held, average="macro", zero_division=0))


def balanced_accuracy_of(y: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """The same of predicted labels alone, by a predictor that is no single client's."""
    return balanced_accuracy(Predictions(y, predicted, np.empty((len(y), 0))))


def macro_f1(of: Predictions) -> float:
    """Mean F1 over the held classes; a class that is never predicted counts as 0."""
    from sklearn.metrics import f1_score

    return float(f1_score(of.y, of.predicted, labels=of.held, average="macro", zero_division=0))


def recalls(of: Predictions) -> NDArray[np.float64]:
    """Recall of every held class, in the classes' order."""
    from sklearn.metrics import recall_score

    return np.asarray(
        recall_score(of.y, of.predicted, labels=of.held, average=None, zero_division=0),
        dtype=np.float64,
    )


def share_weighted_accuracy(of: Predictions) -> float:
    """Accuracy where labels are as frequent as with the client: the recalls, weighed by its
    shares.
    """
    if of.shares is None:
        return accuracy(of)
    return float(np.average(recalls(of), weights=of.shares[of.held]))


BINS = 15
"""Of confidence, of equal width (Guo et al. 2017)."""


def auroc(of: Predictions) -> float | None:
    """Area under the ROC curve of one class against the rest, mean over the held classes; None
    where all rows are of one class.
    """
    from sklearn.metrics import roc_auc_score

    areas = [
        roc_auc_score(of.y == label, of.probabilities[:, label])
        for label in of.held
        if (of.y != label).any()
    ]
    if areas:
        return float(np.mean(areas))
    return None


def calibration_error(of: Predictions) -> float:
    """Expected calibration error: mean |share predicted right - mean confidence| over :data:`BINS`,
    weighed by their rows.

    Guo et al. 2017, On calibration of modern neural networks (arXiv 1706.04599), equation 3.
    """
    confidence = of.probabilities.max(axis=1).astype(np.float64)
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, weights=(of.predicted == of.y) - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(of.y))


_OWN = "of each client's own generator (or classifier) on its own test rows"
_INTERPOLATED = (
    "at the clients, own classifier and shared one interpolated (where there is one of each)"
)
_ALONE = "at the clients, own classifier alone"
_CHANCE = (("chance", "chance"),)
_ALL_ROWS = (
    ("ceiling", "ceiling_balanced_accuracy"),
    ("local-only", "local_only_balanced_accuracy"),
    *_CHANCE,
)
_OWN_ROWS = (("local-only", "client_local_only_balanced_accuracy"), *_CHANCE)
"""Of clients' own test rows the ceiling of the pooled rows is none."""

MEASURES = {
    "accuracy": Measure("Accuracy", "all", accuracy, "accuracy"),
    "balanced_accuracy": Measure(
        "Balanced accuracy",
        "all",
        balanced_accuracy,
        "balanced",
        table=True,
        terminal=True,
        references=_ALL_ROWS,
    ),
    "share_of_ceiling": Measure("Balanced accuracy as a share of the ceiling", "all"),
    "macro_f1": Measure("Macro F1", "all", macro_f1, "macro F1"),
    "auroc": Measure(
        "AUROC, one class against the rest, mean over classes", "all", auroc, "AUROC", table=True
    ),
    "calibration_error": Measure(
        "Expected calibration error", "all", calibration_error, table=True, best=0.0
    ),
    "worst_class_recall": Measure(
        "Recall of the worst class",
        "all",
        lambda of: float(recalls(of).min()),
        "worst class",
        table=True,
    ),
    "knn_balanced_accuracy": Measure(
        "Balanced accuracy of the nearest synthetic neighbours",
        "all",
        None,
        "kNN",
        table=True,
        references=_CHANCE,
    ),
    "mlp_balanced_accuracy": Measure(
        "Balanced accuracy of a small network", "all", table=True, references=_CHANCE
    ),
    "frechet_distance": Measure(
        "Fréchet distance to test rows, mean over classes",
        "all",
        table=True,
        best=0.0,
        most=math.inf,
        fidelity=True,
    ),
    # an unbiased one may be a little below 0
    "squared_mmd": Measure(
        "Squared MMD to test rows, mean over classes",
        "all",
        best=0.0,
        least=-math.inf,
        most=math.inf,
        fidelity=True,
    ),
    "density": Measure(
        "Density among test rows, mean over classes", "all", best=None, most=math.inf, fidelity=True
    ),
    "coverage": Measure(
        "Coverage of test rows, mean over classes",
        "all",
        None,
        "coverage",
        table=True,
        fidelity=True,
    ),
    "synthetic_norm": Measure(
        "Mean norm of synthetic rows before long ones are shortened to 1.2; real rows have 1",
        "all",
        best=1.0,
        most=math.inf,
    ),
    "real_or_synthetic": Measure(
        "Accuracy of telling synthetic from test rows, 0.5 is best",
        "all",
        table=True,
        best=0.5,
        fidelity=True,
    ),
    "client_balanced_accuracy": Measure(
        f"Balanced accuracy {_OWN}, mean over clients",
        "clients",
        table=True,
        terminal=True,
        references=_OWN_ROWS,
    ),
    "client_worst_balanced_accuracy": Measure(
        f"Balanced accuracy {_OWN}, worst client", "clients", table=True, references=_CHANCE
    ),
    "client_spread": Measure(
        f"Balanced accuracy {_OWN}, best client less worst", "clients", best=0.0
    ),
    "client_shared_balanced_accuracy": Measure(
        "Balanced accuracy of the shared generator on the same rows",
        "clients",
        table=True,
        references=_OWN_ROWS,
    ),
    "client_local_only_balanced_accuracy": Measure(
        "Balanced accuracy of each client's own real rows on the same rows", "clients"
    ),
    "personal_accuracy": Measure(
        f"Accuracy {_INTERPOLATED}",
        "personal",
        share_weighted_accuracy,
        table=True,
        terminal=True,
        references=(("own classifier alone", "personal_alone_accuracy"),),
    ),
    "personal_balanced_accuracy": Measure(
        f"Balanced accuracy {_INTERPOLATED}",
        "personal",
        balanced_accuracy,
        table=True,
        terminal=True,
        references=(("own classifier alone", "personal_alone_balanced_accuracy"),),
    ),
    "personal_alone_accuracy": Measure(f"Accuracy {_ALONE}", "personal"),
    "personal_alone_balanced_accuracy": Measure(f"Balanced accuracy {_ALONE}", "personal"),
    "personal_weight": Measure(
        "Mean weight of the clients' own classifiers", "personal", best=None
    ),
}
"""The measures by the name of their field, in the order of a row."""
