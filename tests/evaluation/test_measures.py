"""One more measure is one entry: it is found in the row and on the page."""

from pathlib import Path

import numpy as np
import pytest
from cells import quick, small_cells
from rows import add_rows, joined, ran
from sklearn.metrics import roc_auc_score

import fedsim
from fedsim.evaluation import measures
from fedsim.evaluation.measures import MEASURES, Measure, Predictions, auroc, calibration_error
from fedsim.evaluation.scores import Ceiling, LocalOnly, scores_of
from fedsim.report.report import write_report
from fedsim.results.columns import COLUMNS, score_column


def top_2(of: Predictions) -> float:
    """The share of rows whose label is one of the two likeliest: it needs probabilities."""
    likeliest = np.argsort(of.probabilities, axis=1)[:, -2:]
    return float((likeliest == of.y[:, None]).any(axis=1).mean())


@pytest.fixture
def more_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more entry of ``MEASURES``; its column is made when the modules are loaded."""
    measure = Measure(
        "Among the two likeliest",
        "all",
        top_2,
        "top 2",
        table=True,
    )
    monkeypatch.setitem(MEASURES, "top_2", measure)
    monkeypatch.setitem(COLUMNS, "top_2", score_column("top_2"))


@pytest.mark.parametrize("name", ["dp-gaussian", "local-only"])
def test_a_measure_is_in_the_results_and_on_the_page(
    name: str, tmp_path: Path, more_measures: None
) -> None:
    cells = small_cells(quick(name), epsilon=4.0)
    (trial,) = cells.trials
    row = joined(
        trial,
        *ran(cells, trial),
        Ceiling(0.9, 0.9, 100, 1.0),
        LocalOnly(0.5, (), 100, 1.0),
    )
    add_rows(tmp_path, row)
    page = write_report(tmp_path).page.read_text(encoding="utf-8")
    score = row.top_2
    assert row.scores["accuracy"] < score <= 1
    assert fedsim.load(tmp_path).rows.loc[0, "top_2"] == pytest.approx(score)
    for text in ("<th>top 2</th>", "Among the two likeliest", f"<td>{score:.3f}</td>"):
        assert text in page


@pytest.fixture
def predictions() -> Predictions:
    """Predictions of four classes that are right more often than by chance."""
    rng = np.random.default_rng(0)
    y = rng.integers(4, size=200)
    likely = rng.random((200, 4)) + 0.4 * np.eye(4)[y]
    return Predictions(
        y,
        likely.argmax(1),
        likely / likely.sum(1, keepdims=True),
    )


def test_auroc_is_the_mean_of_one_class_against_the_rest(predictions: Predictions) -> None:
    y = predictions.y
    known = roc_auc_score(
        y,
        predictions.probabilities,
        multi_class="ovr",
        average="macro",
    )
    assert auroc(predictions) == pytest.approx(known)


def test_auroc_from_ranks_is_that_from_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(7, size=200)
    # Rounded numbers have ties.
    probabilities = rng.random((200, 8)).round(1)
    many = Predictions(y, probabilities.argmax(1), probabilities)
    from_curves = auroc(many)
    monkeypatch.setattr(measures, "MANY_PROBABILITIES", 100)
    monkeypatch.setattr(measures, "CLASSES_AT_ONCE", 3)
    assert auroc(many) == pytest.approx(from_curves)


def test_auroc_alone_is_not_defined_for_rows_of_one_class(predictions: Predictions) -> None:
    one_class = Predictions(
        np.zeros(200, np.int64), predictions.predicted, predictions.probabilities
    )
    assert scores_of(predictions).keys() - scores_of(one_class).keys() == {"auroc"}


@pytest.mark.parametrize(("y", "error"), [([0, 0, 1, 1], 0.05), ([0, 1, 1, 1], 0.3)])
def test_calibration_error_compares_confidence_and_accuracy(
    y: list[int],
    error: float,
) -> None:
    confident = np.array([[1.0, 0.0], [1.0, 0.0], [0.1, 0.9], [0.1, 0.9]])
    of = Predictions(np.array(y), confident.argmax(1), confident)
    assert calibration_error(of) == pytest.approx(error)
