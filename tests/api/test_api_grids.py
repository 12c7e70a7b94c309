import signal
from pathlib import Path

import pytest
from plug_ins import GOOD

import fedsim
from fedsim.grid.read import load_grid

SMALL = {"dataset": {"name": "digits", "limit": 200}, "clients": 4, "alpha": 1.0, "evaluation": {"per_class": 10}}


def test_a_path_and_a_mapping_are_the_same_grid(folder: Path) -> None:
    (folder / "g.yaml").write_text("algorithms: [dp-gaussian]\nclients: 4\nevaluation: {per_class: 10}\n")
    of_file = load_grid("g.yaml", {"evaluation.probe_c": 1.0, "epsilon": [1, float("inf")]}, ["dp-linear"])
    written = {"name": "g", "algorithms": ["dp-gaussian", "dp-linear"], "clients": 4, "epsilon": [1, float("inf")]}
    assert of_file == load_grid(written | {"evaluation": {"per_class": 10, "probe_c": 1.0}})


def test_a_mapping_stays_as_it_is() -> None:
    grid = {"algorithms": ["dp-gaussian"], "evaluation": {"per_class": 10}}
    load_grid(grid, {"evaluation.per_class": 20}, ["dp-linear"])
    assert grid == {"algorithms": ["dp-gaussian"], "evaluation": {"per_class": 10}}


@pytest.mark.parametrize(
    ("grid", "replaced", "says"),
    [
        ({"algorithms": ["dp-gaussian"], "epsilonn": 1}, {}, r"^epsilonn: .*did you mean 'epsilon'"),
        ({"algorithms": ["dp-gausian"]}, {}, r"^algorithms\[0\].*: unknown algorithm 'dp-gausian'; did you mean 'dp-gaussian'"),
        ({"algorithms": ["dp-gaussian"]}, {"epsilon": [1, -1]}, r"^--set epsilon\[1\]: .*> 0"),
        ({"algorithms": ["dp-gaussian"], "alpha": 1}, {"alpha.x": 1}, r"^--set alpha.x: 'alpha' is not a mapping"),
        ("nowhere.yaml", {}, r"^nowhere.yaml: there is no such file; give the path of a grid file"),
    ],
)
def test_a_mistake_is_an_exception_with_the_commands_sentence_and_nothing_is_written(
    folder: Path, grid: object, replaced: dict[str, object], says: str
) -> None:
    with pytest.raises(fedsim.UserError, match=says):
        fedsim.bench(grid, set=replaced, in_process=True)  # type: ignore[arg-type]
    assert list(folder.iterdir()) == []


def test_an_interruption_is_raised_and_the_next_one_is_heard_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)

    def interrupted(*args: object, **how: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the first one leaves it for an orderly end
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsim.runs.bench.Scheduler.run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fedsim.bench(SMALL, algorithms=["dp-gaussian"], out="run", in_process=True)
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    assert fedsim.bench(SMALL, algorithms=["dp-gaussian"], out=folder / "run", in_process=True).rows["status"].tolist() == ["ok"]


def test_a_plan_has_the_columns_of_rows_that_are_known_before() -> None:
    cells = fedsim.plan(SMALL | {"algorithms": ["dp-gaussian", "fedavg-cvae"], "epsilon": [1, 4]}).cells
    assert cells["label"].tolist() == ["dp-gaussian", "dp-gaussian", "fedavg-cvae"]
    assert cells["sigma"].notna().tolist() == [True, True, False]
    assert {"status", "balanced_accuracy", "seconds"}.isdisjoint(cells.columns)


def test_the_path_of_a_plug_in_is_relative_to_its_grid_and_its_label_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "grids").mkdir()
    (folder / "beside_grid.py").write_text(GOOD)
    (folder / "grids" / "in_grids.py").write_text(GOOD)
    (folder / "grids" / "g.yaml").write_text("algorithms: [in_grids.py:MyMethod, ../beside_grid.py:MyMethod]\n")
    entries = load_grid(folder / "grids" / "g.yaml").algorithms
    assert [entry.name for entry in entries] == ["grids/in_grids.py:MyMethod", "beside_grid.py:MyMethod"]
    assert [entry.display for entry in entries] == ["in_grids.py:MyMethod", "../beside_grid.py:MyMethod"]
    with pytest.raises(fedsim.UserError, match=r"no file 'grids/beside_grid.py'; a grid file gives its path from its own folder"):
        fedsim.plan("grids/g.yaml", set={"algorithms": ["beside_grid.py:MyMethod"]})
    monkeypatch.chdir("grids")
    assert [entry.name for entry in load_grid("g.yaml").algorithms] == ["in_grids.py:MyMethod", f"{folder}/beside_grid.py:MyMethod"]


def test_a_budget_has_its_numbers_in_frames_and_words() -> None:
    bought = fedsim.account(2.0, releases=[{"name": "moments"}, {"name": "sgd", "rounds": 3, "sample_rate": 0.1}])
    assert bought.rounds["release"].tolist() == ["moments", "sgd", "sgd", "sgd", "sgd"]
    assert bought.rounds["epsilon"].iloc[3] == pytest.approx(2.0, rel=0.01)
    assert f"σ = {bought.sigma:.6g}" in repr(bought)
    with pytest.raises(fedsim.UserError, match=r"^releases: \[0\].nam: unknown key 'nam'"):
        fedsim.account(2.0, releases=[{"nam": "moments"}])


def test_algorithms_are_a_frame_and_one_is_a_page() -> None:
    frame = fedsim.algorithms()
    assert frame.loc["dp-linear", "yields"] == "classifier"
    assert frame.loc["dp-gaussian", "parameters"]["radius"] == "0.8"
    assert repr(fedsim.describe("dp-gaussian")).startswith("dp-gaussian\nsource:")


def test_an_audit_says_whether_it_refutes(folder: Path) -> None:
    found = fedsim.audit("dp-gaussian", pairs=20, out=folder / "audit")
    assert found.refuted is False
    assert "dp-gaussian, example, aggregate: not refuted" in repr(found)
