"""The trackers themselves are tested where they are installed: `pip install mlflow tensorboard`."""

from collections.abc import Callable
from pathlib import Path

import pytest
from benches import Ran
from cells import small_grid

from fedsim.errors import UserError
from fedsim.report.tracking import export, tracked


@pytest.fixture
def run(bench: Callable[..., Ran]) -> Path:
    """Two cells, one of which has rounds of DP-SGD."""
    return bench(small_grid("dp-linear", "dp-gaussian", epsilon=[4.0]), "run").folder


def test_a_cell_has_its_settings_scores_costs_and_rounds(run: Path) -> None:
    linear, gaussian = tracked(run)
    assert (linear.settings["label"], linear.settings["epsilon_target"], linear.settings["seed"]) == ("dp-linear", 4.0, 0)
    assert linear.settings["params.rounds"].isdigit()
    assert 0 < linear.metrics["balanced_accuracy"] <= 1
    assert 3.9 < linear.metrics["epsilon_spent"] <= 4
    assert linear.metrics["uplink_bytes"] > 0
    # a noisy mean comes before the rounds of DP-SGD
    assert [number for number, _ in linear.rounds] == list(range(1 + int(linear.settings["params.rounds"])))
    assert linear.rounds[0][1].keys() >= {"noise_norm", "signal_norm"}
    assert not linear.rounds[0][1].keys() & {"sampled", "noise"}
    assert (gaussian.tags["status"], gaussian.settings["claim"]) == ("ok", "proved")


def test_mlflow_reads_what_was_written(run: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="mlflow-skinny has no database")
    out, count = export(run, "mlflow", tmp_path / "out")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "run"]
    runs = {found.data.params["label"]: found for found in client.search_runs([experiment.experiment_id])}
    cells = {cell.settings["label"]: cell for cell in tracked(run)}
    assert (count, runs.keys()) == (2, cells.keys())
    for label, cell in cells.items():
        assert runs[label].data.metrics.items() >= cell.metrics.items()
        assert runs[label].data.tags["cell_id"] == cell.tags["cell_id"]
    history = client.get_metric_history(runs["dp-linear"].info.run_id, "round/noise_norm")
    assert [(point.step, point.value) for point in history] == [(at, values["noise_norm"]) for at, values in cells["dp-linear"].rounds]


def test_tensorboard_reads_what_was_written(run: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed")
    out, _ = export(run, "tensorboard", tmp_path / "out")
    (folder,) = (path for path in out.iterdir() if path.name.startswith("dp-linear"))
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    (cell,) = (cell for cell in tracked(run) if cell.settings["label"] == "dp-linear")
    assert events.Scalars("score/balanced_accuracy")[0].value == pytest.approx(cell.metrics["balanced_accuracy"])
    written = [(event.step, event.value) for event in events.Scalars("round/noise_norm")]
    assert written == [(at, pytest.approx(values["noise_norm"])) for at, values in cell.rounds]


def test_wandb_writes_offline_runs(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    out, _ = export(run, "wandb", tmp_path / "out")
    assert len(list((out / "wandb").glob("offline-run-*"))) == 2


def test_a_folder_that_is_not_empty_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match="is there and not empty"):
        export(run, "tensorboard", tmp_path / "out")


def test_a_tool_that_is_missing_is_named_with_the_extra_that_installs_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match=r"the package 'wandb' is not installed; .*'\.\[wandb\]'"):
        export(run, "wandb", tmp_path / "out")
    assert not (tmp_path / "out").exists()
