"""Defines the measures of an evaluation: how each is computed, its title, and where it is shown.

To add a measure, add an entry to :data:`MEASURES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.data.split import Integers

LabelShares = Literal["released", "uniform"]
"""The source of the label frequencies to which plain accuracy adapts the predicted labels.

``released``: the algorithm released them within its budget. ``uniform``: all labels are equally
frequent.
"""


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of one predictor for test rows.

    Attributes:
        y: the true labels, int64 ``[m]``.
        predicted: the predicted labels, int64 ``[m]``.
        probabilities: the probabilities of the classes, ``[m, C]``.
        shares: the class frequencies of the client whose predictor it is, ``[C]``; None if the
            predictor does not belong to a single client.
    """

    y: Integers
    predicted: Integers
    probabilities: NDArray[np.floating]
    shares: NDArray[np.float64] | None = None

    @property
    def held(self) -> Integers:
        """The held classes, ascending: those with a test row and a training row of the client.

        Without a client they are all classes with a test row.
        """
        classes = np.unique(self.y)
        if self.shares is None:
            return classes
        return classes[self.shares[classes] > 0]


@dataclass(frozen=True)
class Measure:
    """A number per cell that is computed in the same way for every algorithm.

    Attributes:
        title: the title of its table.
        of: the predictions that it is computed from. ``all``: the predictions of all test rows by
            the shared probe or classifier. If each client has its own classifier, the number is the
            mean over clients. ``clients``: each client's predictions of its own test rows, by its
            own classifier or by the probe on its own generator's embeddings. ``personal``: each
            client's predictions of its own test rows, by its personal predictor; the number is the
            mean over clients.
        score: the function that computes the number from predictions. It returns None if the number
            is not defined for them. None: other code computes the number.
        column: its heading in the page's list of cells; the list leaves it out if this is empty.
        table: whether the page has a table of it if a result has the number.
        terminal: whether the terminal shows that table, too.
        references: the reference levels beside it, each a name and a column of the results.
        best: the best number; infinite if larger is always better; None if no number is best.
        least: the least possible number.
        most: the largest possible number.
        fidelity: whether the picture of fidelity shows it.
        notes: sentences below each of its tables.
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
    notes: tuple[str, ...] = ()


def accuracy(of: Predictions) -> float:
    """Return the share of right predictions."""
    return float(np.mean(of.predicted == of.y))


def balanced_accuracy(of: Predictions) -> float:
    """Return the mean recall over the held classes; it is 0 for a class that is never predicted."""
    return float(recalls(of).mean())


def balanced_accuracy_of(y: Integers, predicted: Integers) -> float:
    """Return the balanced accuracy of predicted labels ``[m]`` that are no single client's."""
    return balanced_accuracy(Predictions(y, predicted, np.empty((len(y), 0))))


def macro_f1(of: Predictions) -> float:
    """Return the mean F1 score over the held classes; it is 0 for a class never predicted."""
    from sklearn.metrics import f1_score

    return float(
        f1_score(
            of.y,
            of.predicted,
            labels=of.held,
            average="macro",
            zero_division=0,
        )
    )


def recalls(of: Predictions) -> NDArray[np.float64]:
    """Return the recall of every held class, ``[held classes]``, ascending by class."""
    held = of.held
    count = np.bincount(of.y)
    right = np.bincount(of.y[of.predicted == of.y], minlength=len(count))
    return np.asarray(right[held] / count[held])


def share_weighted_accuracy(of: Predictions) -> float:
    """Return the mean recall over the held classes, weighted by the client's label frequencies.

    It is plain accuracy if the predictor does not belong to a single client.
    """
    if of.shares is None:
        return accuracy(of)
    return float(np.average(recalls(of), weights=of.shares[of.held]))


MANY_PROBABILITIES = 1_000_000
"""Areas under ROC curves are computed from ranks if there are more probabilities than this."""
CLASSES_AT_ONCE = 50
"""The number of classes whose rows are ranked at once."""
BINS = 15
"""The number of bins of confidence, of equal width (Guo et al. 2017)."""


def auroc(of: Predictions) -> float | None:
    """Return the area under the ROC curve of one class against the rest, as the mean over classes.

    The mean is over the held classes; it is None if all rows have the same class.
    """
    from sklearn.metrics import roc_auc_score

    if of.probabilities.size > MANY_PROBABILITIES:
        areas = _areas_by_rank(of)
    else:
        areas = [
            roc_auc_score(of.y == label, of.probabilities[:, label])
            for label in of.held
            if (of.y != label).any()
        ]
    if not areas:
        return None
    return float(np.mean(areas))


def _areas_by_rank(of: Predictions) -> list[float]:
    """Return the areas of :func:`auroc`, computed from ranks for one block of classes at a time."""
    from scipy.stats import rankdata

    areas = []
    held = of.held
    for block in np.split(held, range(CLASSES_AT_ONCE, len(held), CLASSES_AT_ONCE)):
        ranks = rankdata(of.probabilities[:, block], axis=0)
        for column, label in enumerate(block):
            is_label = of.y == label
            count = int(is_label.sum())
            others = len(of.y) - count
            if others:
                # The Mann-Whitney statistic: the pairs in which the row of the class ranks higher.
                above = ranks[is_label, column].sum() - count * (count + 1) / 2
                areas.append(float(above / (count * others)))
    return areas


def calibration_error(of: Predictions) -> float:
    """Return the expected calibration error over :data:`BINS` bins of confidence.

    It is the mean of |share of right predictions - mean confidence| over the bins, weighted by
    their numbers of rows (Guo et al. 2017, On calibration of modern neural networks, arXiv
    1706.04599, equation 3).
    """
    confidence = of.probabilities.max(axis=1).astype(np.float64)
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    # Each gap is a sum over the rows of its bin, so it has the bin's weight already.
    gaps = np.bincount(bins, weights=(of.predicted == of.y) - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(of.y))


def worst_class_recall(of: Predictions) -> float:
    """Return the lowest recall of a held class."""
    return float(recalls(of).min())


_OWN = "of each client's own generator (or classifier) on its own test examples"
_INTERPOLATED = (
    "at the clients, own classifier and shared one interpolated (where there is one of each)"
)
_ALONE = "at the clients, own classifier alone"
HELD_OUT = "personal_held_out"
"""This replaces ``personal`` in the names of scores with a weight from validation examples."""
_VALIDATED = (
    "at the clients, own classifier and shared one mixed (where there is one of each), with one "
    "weight for all, chosen on real validation examples (not private)"
)
HELD_OUT_NOTE = (
    "Not private: all clients have the one weight that is best on their real validation examples. "
    "No ε covers that choice. No method is trained on these examples, and no test example was used "
    "for the choice."
)
"""This note marks every table of scores with a weight from validation examples."""
_CHANCE = (("chance", "chance"),)
_ALL_ROWS = (
    ("ceiling", "ceiling_balanced_accuracy"),
    ("local-only", "local_only_balanced_accuracy"),
    *_CHANCE,
)
_OWN_ROWS = (("local-only", "client_local_only_balanced_accuracy"), *_CHANCE)
"""The references of scores on clients' own test rows, for which the ceiling is no bound."""

MEASURES = {
    "accuracy": Measure(
        "Accuracy",
        "all",
        accuracy,
        "accuracy",
    ),
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
    "macro_f1": Measure(
        "Macro F1",
        "all",
        macro_f1,
        "macro F1",
    ),
    "auroc": Measure(
        "AUROC, one class against the rest, mean over classes",
        "all",
        auroc,
        "AUROC",
        table=True,
    ),
    "calibration_error": Measure(
        "Expected calibration error",
        "all",
        calibration_error,
        table=True,
        best=0.0,
    ),
    "worst_class_recall": Measure(
        "Recall of the worst class",
        "all",
        worst_class_recall,
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
        "Balanced accuracy of a small network",
        "all",
        table=True,
        references=_CHANCE,
    ),
    "frechet_distance": Measure(
        "Fréchet distance to test examples, mean over classes",
        "all",
        table=True,
        best=0.0,
        most=math.inf,
        fidelity=True,
    ),
    # An unbiased estimate may be a little below 0.
    "squared_mmd": Measure(
        "Squared MMD to test examples, mean over classes",
        "all",
        best=0.0,
        least=-math.inf,
        most=math.inf,
        fidelity=True,
    ),
    "density": Measure(
        "Density among test examples, mean over classes",
        "all",
        best=None,
        most=math.inf,
        fidelity=True,
    ),
    "coverage": Measure(
        "Coverage of test examples, mean over classes",
        "all",
        None,
        "coverage",
        table=True,
        fidelity=True,
    ),
    "synthetic_norm": Measure(
        "Mean norm of synthetic examples before shortening to 1.2 (real examples have norm 1)",
        "all",
        best=1.0,
        most=math.inf,
    ),
    "real_or_synthetic": Measure(
        "Two-sample accuracy of a classifier, synthetic against test examples (0.5 is best)",
        "all",
        table=True,
        best=0.5,
        fidelity=True,
    ),
    "membership_auc": Measure(
        "AUC of membership inference by fedsim audit, the larger of two attacks (0.5 is guessing)",
        "all",
        table=True,
        best=0.0,
    ),
    "client_balanced_accuracy": Measure(
        f"Balanced accuracy {_OWN}, mean over clients",
        "clients",
        table=True,
        terminal=True,
        references=_OWN_ROWS,
    ),
    "client_worst_balanced_accuracy": Measure(
        f"Balanced accuracy {_OWN}, worst client",
        "clients",
        table=True,
        references=_CHANCE,
    ),
    "client_spread": Measure(
        f"Balanced accuracy {_OWN}, best client less worst", "clients", best=0.0
    ),
    "client_shared_balanced_accuracy": Measure(
        "Balanced accuracy of the shared generator on the same examples",
        "clients",
        table=True,
        references=_OWN_ROWS,
    ),
    "client_local_only_balanced_accuracy": Measure(
        "Balanced accuracy of a probe of each client's own real examples, on its test examples",
        "clients",
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
    "personal_held_out_accuracy": Measure(
        f"Accuracy {_VALIDATED}",
        "personal",
        table=True,
        terminal=True,
        references=(("own classifier alone", "personal_held_out_alone_accuracy"),),
        notes=(HELD_OUT_NOTE,),
    ),
    "personal_held_out_balanced_accuracy": Measure(
        f"Balanced accuracy {_VALIDATED}",
        "personal",
        table=True,
        terminal=True,
        references=(("own classifier alone", "personal_held_out_alone_balanced_accuracy"),),
        notes=(HELD_OUT_NOTE,),
    ),
    "personal_held_out_alone_accuracy": Measure(
        f"Accuracy {_ALONE}, without validation examples",
        "personal",
    ),
    "personal_held_out_alone_balanced_accuracy": Measure(
        f"Balanced accuracy {_ALONE}, without validation examples",
        "personal",
    ),
    "personal_held_out_weight": Measure(
        "Weight of the clients' own classifiers, chosen on real validation examples (not private)",
        "personal",
        best=None,
    ),
}
"""The measures by the names of their columns, in the order of the columns."""
