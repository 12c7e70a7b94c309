"""A measure more is one entry: it is found in the row and in the page."""

from pathlib import Path

import numpy as np
import pytest
from cells import quick, small_cells
from rows import add_rows, joined, ran
from sklearn.metrics import roc_auc_score

import fedsim
from fedsim.evaluation.measures import MEASURES, Measure, Predictions, auroc, calibration_error
from fedsim.evaluation.scores import Ceiling, LocalOnly, scores_of
from fedsim.report.report import write_report
from fedsim.results.columns import COLUMNS, score_column


def top_2(of: Predictions) -> float:
    """Share of the rows whose label is one of the two likeliest: a measure that labels alone do not
    give.
    """
    likeliest = np.argsort(of.probabilities, axis=1)[:, -2:]
    return float((likeliest == of.y[:, None]).any(axis=1).mean())


def register(monkeypatch: pytest.MonkeyPatch, measure: Measure) -> None:
    """One more entry of ``MEASURES``, of which its column is made when the modules are loaded."""
    monkeypatch.setitem(MEASURES, "top_2", measure)
    monkeypatch.setitem(COLUMNS, "top_2", score_column("top_2"))


@pytest.mark.parametrize("name", ["dp-gaussian", "local-only"])
def test_a_measure_that_is_registered_is_everywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, Measure("Among the two likeliest", "all", top_2, "top 2", table=True))
    cells = small_cells(quick(name), epsilon=4.0)
    (trial,) = cells.trials
    row = joined(trial, *ran(cells, trial), Ceiling(0.9, 0.9), LocalOnly(0.5, ()))
    add_rows(tmp_path, row)
    found = row.top_2
    assert found is not None
    assert row.scores["accuracy"] < found <= 1
    page = write_report(tmp_path).page.read_text(encoding="utf-8")
    assert fedsim.load(tmp_path).rows.loc[0, "top_2"] == pytest.approx(found)
    assert "<th>top 2</th>" in page
    assert "Among the two likeliest" in page
    assert f"<td>{found:.3f}</td>" in page


def made_up() -> Predictions:
    rng = np.random.default_rng(0)
    y = rng.integers(4, size=200)
    likely = rng.random((200, 4)) + 0.4 * np.eye(4)[y]
    return Predictions(y, likely.argmax(1), likely / likely.sum(1, keepdims=True))


def test_auroc_is_the_mean_of_one_class_against_the_rest() -> None:
    of = made_up()
    assert auroc(of) == pytest.approx(
        roc_auc_score(of.y, of.probabilities, multi_class="ovr", average="macro")
    )
    assert {"auroc"} == {*scores_of(of)} - {
        *scores_of(Predictions(np.zeros(200, np.int64), of.predicted, of.probabilities))
    }


def test_calibration_error_is_how_far_confidence_is_from_the_share_that_is_right() -> None:
    sure = np.array([[1.0, 0.0], [1.0, 0.0], [0.1, 0.9], [0.1, 0.9]])
    assert calibration_error(
        Predictions(np.array([0, 0, 1, 1]), sure.argmax(1), sure)
    ) == pytest.approx(0.05)
    assert calibration_error(
        Predictions(np.array([0, 1, 1, 1]), sure.argmax(1), sure)
    ) == pytest.approx(0.3)
