import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
import torch
from benches import Done
from notebooks import Notebook

import fedsim
from fedsim.results.grid_rows import grid_rows

GRID: dict[str, Any] = {
    "dataset": {"name": "digits", "limit": 200},
    "algorithms": ["dp-gaussian", {"name": "dp-linear", "params": {"rounds": 3}, "label": "linear"}],
    "clients": 4,
    "alpha": 1.0,
    "epsilon": [2, 8],
    "seeds": [0, 1],
    "evaluation": {"per_class": 10, "per_client": True},
    "audit": {"pairs": 20, "rounds": 1},
}
"""Pairs as few as a bound needs."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fedsim.Run]:
    """A finished run."""
    yield fedsim.bench(GRID, out=tmp_path_factory.mktemp("runs") / "run", in_process=True)
    torch.set_flush_denormal(False)


def test_the_face_shows_what_there_is_and_loads_nothing_before_it_is_used() -> None:
    script = "import sys, fedsim; print(*dir(fedsim)); print([name for name in ('torch', 'ray', 'pandas', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    names, loaded = done.stdout.splitlines()
    assert {"bench", "load", "partition", "plan", "account", "check", "audit", "UserError", "Run"} <= set(names.split())
    assert loaded == "[]"
    assert all(getattr(fedsim, name) is not None for name in names.split())


def test_partition_is_the_function_whatever_was_imported() -> None:
    import fedsim.partition.schemes.dirichlet

    assert fedsim.partition is not sys.modules["fedsim.partition"]
    assert fedsim.partition(GRID).counts.groupby("seed")["rows"].sum().tolist() == [200, 200]


def test_rows_rounds_clients_and_audits_are_frames(run: fedsim.Run) -> None:
    rows = run.rows
    assert rows["cell_id"].tolist() == [row.cell_id for row in grid_rows(run.folder)]
    assert rows["params.rounds"].dropna().unique().tolist() == [3]
    assert str(rows["params.rounds"].dtype) == "Int64"
    assert len(run.clients) == 4 * len(rows)
    assert run.audits[["label", "epsilon_target", "pairs"]].drop_duplicates().to_numpy().tolist() == [
        [label, epsilon, 20] for label in ("dp-gaussian", "linear") for epsilon in (2.0, 8.0)
    ]
    linear = run.rounds.query("label == 'linear' and epsilon_target == 8 and seed == 1")
    assert linear.groupby("release").size().to_dict() == {"mean": 1, "dp-sgd": 3}


def test_curves_are_a_figure_of_any_measure_and_methods(run: fedsim.Run) -> None:
    figure = run.curves(measure="knn_balanced_accuracy", methods=["dp-gaussian"])
    assert isinstance(figure, matplotlib.figure.Figure)
    (axes,) = figure.axes
    assert "nearest" in axes.get_ylabel().replace("\n", " ")
    drawn = [line for line in axes.get_lines() if len(np.asarray(line.get_xdata())) == 2 and line.get_marker() == "o"]
    mean = run.rows.query("label == 'dp-gaussian'").groupby("epsilon_target")["knn_balanced_accuracy"].mean()
    np.testing.assert_allclose(np.asarray(drawn[0].get_ydata(), dtype=float), mean.to_numpy())
    assert max(run.curves(measure="frechet_distance", methods=["dp-gaussian"]).axes[0].get_ylim()) > 0


def test_a_table_is_a_frame_or_text(run: fedsim.Run) -> None:
    table = run.table(methods=["linear"])
    assert (table.index.to_list(), table.columns.to_list()) == ([("linear", "proved")], ["ε = 2", "ε = 8"])
    mean = run.rows.query("label == 'linear' and epsilon_target == 8")["balanced_accuracy"].mean()
    assert table.loc[("linear", "proved"), "ε = 8"] == f"{mean:.3f}"
    assert run.table(format="latex").count("\\toprule") == 1


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"measure": "acuracy"}, "there is no measure 'acuracy'; did you mean 'accuracy'"),
        ({"methods": ["linear", "liner"]}, "there is no method 'liner'; did you mean 'linear'"),
    ],
)
def test_what_a_picture_does_not_have_is_a_mistake(run: fedsim.Run, asked: dict[str, Any], says: str) -> None:
    for draw in (run.curves, run.table):
        with pytest.raises(fedsim.UserError, match=says):
            draw(**asked)


def test_a_measure_that_no_row_has_is_a_mistake(run: fedsim.Run) -> None:
    with pytest.raises(fedsim.UserError, match="no row that is ok has a mlp_balanced_accuracy"):
        run.curves(measure="mlp_balanced_accuracy")


def test_a_cell_has_its_generator_and_its_statement(run: fedsim.Run) -> None:
    cell = run.rows.query("label == 'dp-gaussian' and epsilon_target == 8").cell_id.iloc[1]
    assert run.generator(cell).sample([0, 3]).shape == (2, 64)
    said = str(run.statement(cell[:10]))
    assert said.splitlines()[0] == "dp-gaussian"
    assert "target 8" in said
    assert "target 2" not in said
    with pytest.raises(fedsim.UserError, match=r"^zz: no cells of"):
        run.statement("zz")


def test_the_command_prints_what_python_has(run: fedsim.Run, command: Callable[..., Done]) -> None:
    assert command("prove", str(run.folder)).stdout.split()[-20:] == repr(run.prove()).split()[-20:]
    assert command("statement", str(run.folder)).stdout.split() == "\n".join(map(repr, run.statements())).split()
    assert command("report", str(run.folder), "--format", "md").stdout.strip() == run.tables("md").strip()
    assert run.compare(run).comparison.equal
    assert "dp-gaussian" in repr(run)


def test_a_folder_without_a_run_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(fedsim.UserError, match="there are no results here"):
        fedsim.load(tmp_path)


def test_a_class_of_a_notebook_is_benched_in_its_process_and_refused_where_others_need_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    book = Notebook(monkeypatch)
    book.cell("import fedsim, torch\nfrom torch import nn\nfrom fedsim.methods import DPSGD, DPSGDParams\nWIDTH = 6")
    book.cell(
        "class Mine(DPSGD):\n"
        "    Params = DPSGDParams\n"
        "    def build(self, clients):\n"
        "        return Net(nn.Linear(self.task.dim, WIDTH), nn.Linear(WIDTH, self.task.classes))\n"
        "    def loss(self, model, batch):\n"
        "        return {'ce': nn.functional.cross_entropy(model(batch.x), batch.y, reduction='none')}\n"
        "    def classifier(self, server):\n"
        "        return server.model\n"
        "class Net(nn.Sequential):\n"
        "    @torch.no_grad()\n"
        "    def probabilities(self, x):\n"
        "        return self(x).softmax(1)\n"
    )
    book.cell(
        "grid = {'dataset': {'name': 'digits', 'limit': 200}, 'clients': 2, 'alpha': 1.0}\n"
        "run, again = (fedsim.bench(grid, out='run', algorithms=[{'name': Mine, 'params': {'rounds': 2}}]) for _ in range(2))"
    )
    run = book.names["run"]
    assert run.rows[["label", "status", "claim", "params.rounds"]].to_numpy().tolist() == [["Mine", "ok", "stated", 2]]
    assert "the cell is finished" in capsys.readouterr().out
    assert run.verify()
    for call in ("fedsim.check(Mine)", "fedsim.audit(Mine)", "fedsim.bench(grid, out='other', algorithms=[Mine], address='auto')"):
        with pytest.raises(fedsim.UserError, match=r"Mine: is defined in this process alone, .*%%writefile my_method\.py"):
            book.cell(call)
