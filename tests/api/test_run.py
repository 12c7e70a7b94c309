import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
import torch
from benches import Done, Ran
from cells import small_grid
from notebooks import Notebook

import fedsim

GRID: dict[str, Any] = {
    "dataset": {"name": "digits", "limit": 200},
    "algorithms": [
        "dp-gaussian",
        {"name": "dp-linear", "params": {"rounds": 3}, "label": "linear"},
    ],
    "clients": 4,
    "alpha": 1.0,
    "epsilon": [2, 8],
    "seeds": [0, 1],
    "evaluation": {"per_class": 10, "per_client": True},
    "audit": {"pairs": 20, "rounds": 1},
}
"""Pairs as few as a bound needs."""
pytestmark = pytest.mark.xdist_group("run")  # so that one process makes it


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fedsim.Run]:
    """A finished run."""
    run = fedsim.bench(GRID, out=tmp_path_factory.mktemp("runs") / "run", in_process=True)
    assert isinstance(run, fedsim.Run)
    yield run
    torch.set_flush_denormal(False)


def test_the_face_shows_what_there_is_and_loads_nothing_before_it_is_used() -> None:
    script = (
        "import sys, fedsim; print(*dir(fedsim)); print([name for name in ('torch', 'ray', "
        "'pandas', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    names, loaded = done.stdout.splitlines()
    assert {"bench", "load", "account", "check", "audit", "UserError", "Run"} <= set(names.split())
    assert loaded == "[]"
    assert all(getattr(fedsim, name) is not None for name in names.split())


def test_rows_rounds_clients_and_audits_are_frames(run: fedsim.Run) -> None:
    rows = run.rows
    assert len(rows) == 8
    assert rows["params.rounds"].dropna().unique().tolist() == [3]
    assert str(rows["params.rounds"].dtype) == "Int64"
    assert len(run.clients) == 4 * len(rows)
    assert run.audits[
        ["label", "epsilon_target", "pairs"]
    ].drop_duplicates().to_numpy().tolist() == [
        [label, epsilon, 20] for label in ("dp-gaussian", "linear") for epsilon in (2.0, 8.0)
    ]
    linear = run.rounds.query("label == 'linear' and epsilon_target == 8 and seed == 1")
    assert linear.groupby("release").size().to_dict() == {"mean": 1, "dp-sgd": 3}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"order": "bset"},
            "order: there is no 'bset'; did you mean 'best'? (known: best, given, ",
        ),
        ({"table": "foo"}, "table: there is no 'foo'; known: differences, private, results, sites"),
        ({"spread": "foo"}, "spread: there is no 'foo'; known: ci95, range, sd"),
    ],
)
def test_a_wrong_choice_for_a_table_names_the_right_ones(
    run: fedsim.Run, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(fedsim.UserError) as caught:
        run.table(**asked)
    assert str(caught.value).startswith(said)


def test_a_wrong_format_of_a_table_names_the_right_ones(run: fedsim.Run) -> None:
    with pytest.raises(fedsim.UserError) as caught:
        run.table().text("tex")  # type: ignore[arg-type]
    assert str(caught.value) == "format: there is no 'tex'; did you mean 'latex'? (known: csv, " + (
        "html, latex, md)"
    )


def test_a_notebook_shows_what_a_run_has(run: fedsim.Run) -> None:
    shown = run._repr_html_()
    assert shown is not None
    for text in ("<h2>run</h2>", "digits[:200]", "8 cells ok", ">linear (classifier)</th>"):
        assert text in shown
    assert f"<code>{run.folder / 'report.html'}</code>" in shown


def test_a_notebook_shows_a_table_with_title_and_notes(run: fedsim.Run) -> None:
    table = run.table()
    shown = table._repr_html_()
    assert f"<h3>{table.title}</h3>" in shown
    assert all(escape(note) in shown for note in table.notes)
    assert shown.count("<style>") == 1


def test_a_notebook_shows_a_figure_without_pyplot(run: fedsim.Run) -> None:
    figure = run.figure()
    figure.axes[0].set_title("my title")
    picture, size = figure._repr_png_()  # type: ignore[attr-defined]
    height, width, _ = matplotlib.image.imread(io.BytesIO(picture), format="png").shape
    assert (width, height) == pytest.approx((2 * size["width"], 2 * size["height"]), abs=2)


def test_a_notebook_s_display_of_a_figure_is_a_picture(run: fedsim.Run) -> None:
    formatters = pytest.importorskip("IPython.core.formatters")
    data, _ = formatters.DisplayFormatter().format(run.figure())
    assert {"image/png", "text/plain"} <= set(data)


def test_a_run_without_results_has_no_picture(tmp_path: Path) -> None:
    assert fedsim.Run(tmp_path)._repr_html_() is None


def test_a_figure_is_of_any_measure(run: fedsim.Run) -> None:
    figure = run.figure(measure="knn_balanced_accuracy")
    assert isinstance(figure, matplotlib.figure.Figure)
    assert "nearest" in figure.axes[0].get_ylabel().replace("\n", " ")
    with pytest.raises(
        fedsim.UserError, match="there is no measure 'acuracy'; did you mean 'accuracy'"
    ):
        run.figure(measure="acuracy")


def test_a_table_is_a_frame_and_the_report_prints_it(
    run: fedsim.Run, command: Callable[..., Done], tmp_path: Path
) -> None:
    table = run.table()
    mean = run.rows.query("label == 'linear' and epsilon_target == 8")["balanced_accuracy"].mean()
    assert any(f"{mean:.3f}" in text for text in table.texts["ε = 8"])
    before = sorted(path.name for path in run.folder.iterdir())
    latex = command("report", str(run.folder), "--format", "latex")
    assert (latex.returncode, "\\toprule" in latex.stdout) == (0, True)
    done = command("report", str(run.folder), "--figure", str(tmp_path / "curve.pdf"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "curve.pdf").read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in run.folder.iterdir()) == before
    assert "is not a .pdf file" in command("report", str(run.folder), "--figure", "a.png").stderr


def test_differences_and_tidy_scores_are_numbers(run: fedsim.Run) -> None:
    tidy = run.tidy.query("measure == 'balanced_accuracy'")
    assert [*tidy] == [
        "method",
        "dataset",
        "alpha",
        "clients",
        "epsilon",
        "seed",
        "measure",
        "score",
    ]
    by_seed = tidy.query("epsilon == 8").pivot(index="seed", columns="method", values="score")
    (found,) = run.differences("dp-gaussian", "linear", where="epsilon_target == 8").to_dict(
        "records"
    )
    assert found["mean"] == pytest.approx((by_seed["dp-gaussian"] - by_seed["linear"]).mean())
    assert 0 < found["p_holm"] <= 1
    with pytest.raises(
        fedsim.UserError, match="two seeds of balanced_accuracy are needed"
    ) as mistake:
        run.differences("dp-gaussian", "linear", where="seed == 0")
    assert mistake.value._render_traceback_() == [f"UserError: {mistake.value}"]


def test_a_cell_has_its_generator_and_its_statement(run: fedsim.Run) -> None:
    cell = run.rows.query("label == 'dp-gaussian' and epsilon_target == 8").cell_id.iloc[1]
    assert run.generator(cell).sample([0, 3]).shape == (2, 64)
    said = run.statement(cell=cell[:10])
    assert said.splitlines()[0] == "dp-gaussian"
    assert "target 8" in said
    assert "target 2" not in said
    with pytest.raises(fedsim.UserError, match=r"^cell zz: no cells of"):
        run.statement(cell="zz")


def test_verify_proves_every_epsilon_and_compares(
    run: fedsim.Run, command: Callable[..., Done], bench: Callable[..., Ran]
) -> None:
    proved = command("verify", str(run.folder))
    assert (proved.returncode, "8 of 8 rows proved" in proved.stdout) == (0, True), proved.stdout
    equal = command("verify", str(run.folder), "--with", str(run.folder))
    assert (equal.returncode, "Equal to the last bit: everything (8 results)" in equal.stdout) == (
        0,
        True,
    )
    other = bench(small_grid("dp-gaussian"), "other").folder
    assert "there are no results here" in command("verify", str(run.folder.parent)).stderr
    assert (
        "no setting and seed is in both"
        in command("verify", str(run.folder), "--with", str(other)).stderr
    )


def test_a_saved_generator_gives_a_file_of_synthetic_embeddings_with_its_manifest(
    tmp_path: Path, bench: Callable[..., Ran], command: Callable[..., Done]
) -> None:
    run = str(bench(small_grid("fedhypevae", epsilon=4.0), "out").folder)
    out = tmp_path / "made/synth.npz"
    done = command("synth", run, "--synthesis", "client:3", "--per-class", "5", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "50 synthetic embeddings of 64 dimensions" in done.stdout
    with np.load(out) as held:
        assert np.bincount(held["y"]).tolist() == [5] * 10
        manifest = json.loads(str(held["manifest"]))
    assert manifest == json.loads(out.with_suffix(".json").read_text())
    assert (manifest["unit"], manifest["trust"], manifest["claim"]) == (
        "example",
        "aggregate",
        "proved",
    )
    refused = command("synth", run, "--synthesis", "client:4", "--out", "more.npz")
    assert (
        refused.returncode,
        refused.stderr.startswith("fedsim: --synthesis client:4: there are 4 clients"),
    ) == (2, True)


def test_synth_warns_of_a_large_delta_without_a_count(
    tmp_path: Path, bench: Callable[..., Ran], command: Callable[..., Done]
) -> None:
    grid = small_grid("dp-gaussian", delta=0.02, dataset={"name": "digits", "limit": 223})
    run = bench(grid).folder
    done = command("synth", str(run), "--out", str(tmp_path / "synth.npz"))
    assert "warning: δ = 0.02 is not below 1/n, where n is" in done.stdout
    assert "223" not in done.stdout.replace(str(tmp_path), "")


def test_a_generator_leaves_as_a_package_if_its_noise_is_secret_and_is_drawn_from_there(
    tmp_path: Path, bench: Callable[..., Ran], command: Callable[..., Done]
) -> None:
    seeded, secret = (
        str(bench(small_grid("dp-gaussian", privacy={"noise": noise}), noise).folder)
        for noise in ("seeded", "secret")
    )
    package = tmp_path / "package"
    assert (
        "none of its generators may be released"
        in command("release", seeded, "--out", str(package)).stderr
    )
    assert not package.exists()
    done = command("release", secret, "--out", str(package))
    assert (done.returncode, "dp-gaussian, ε = 1 at δ = 0.0001, claim proved" in done.stdout) == (
        0,
        True,
    ), done.stderr
    assert command("synth", str(package), "--out", str(tmp_path / "synth.npz")).returncode == 0
    hub = tmp_path / "hub"
    assert (
        command("synth", secret, "--format", "hf", "--out", str(hub), "--per-class", "3").returncode
        == 0
    )
    assert {"README.md", "data"} <= {path.name for path in hub.iterdir()}


def test_code_that_a_run_names_runs_only_if_it_is_trusted(
    folder: Path, bench: Callable[..., Ran], command: Callable[..., Done]
) -> None:
    run = bench(small_grid("dp-gaussian", privacy={"noise": "secret"}), "run").folder
    Path("evil.py").write_text(
        'open("evil ran", "w").close()\nfrom baselines.dp_gaussian import DPGaussian as X\n'
    )
    path = run / "trainings.jsonl"
    path.write_text(
        path.read_text().replace('"algorithm": "dp-gaussian"', '"algorithm": "evil.py:X"')
    )
    done = command("release", str(run), "--out", "package")
    assert (done.returncode, "give --trust-plugin if you trust that code" in done.stderr) == (
        2,
        True,
    )
    assert not Path("evil ran").exists()


def test_a_class_of_a_notebook_is_benched_in_its_process_and_refused_where_others_need_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    book = Notebook(monkeypatch)
    book.cell(
        "import fedsim, torch\nfrom torch import nn\nfrom fedsim.methods import DPSGD, "
        "DPSGDParams\nWIDTH = 6"
    )
    book.cell(
        "class Mine(DPSGD):\n"
        "    Params = DPSGDParams\n"
        "    def build(self, clients):\n"
        "        return Net(nn.Linear(self.task.dim, WIDTH), nn.Linear(WIDTH, self.task.classes))\n"
        "    def loss(self, model, batch):\n"
        "        print('chat')\n"
        "        return {'ce': nn.functional.cross_entropy(model(batch.x), batch.y, "
        "reduction='none')}\n"
        "    def classifier(self, server):\n"
        "        return server.model\n"
        "class Net(nn.Sequential):\n"
        "    @torch.no_grad()\n"
        "    def probabilities(self, x):\n"
        "        return self(x).softmax(1)\n"
    )
    book.cell(
        "grid = {'dataset': {'name': 'digits', 'limit': 200}, 'clients': 2, 'alpha': 1.0}\n"
        "run, again = (fedsim.bench(grid, out='run', algorithms=[{'name': Mine, 'params': "
        "{'rounds': 2}}]) for _ in range(2))"
    )
    run = book.names["run"]
    (log,) = (folder / "run" / "logs").iterdir()
    assert ("chat" in log.read_text(), "chat" in capsys.readouterr().out) == (True, False)
    assert run.rows[["label", "status", "claim", "params.rounds"]].to_numpy().tolist() == [
        ["Mine", "ok", "stated", 2]
    ]
    assert len((folder / "run" / "trainings.jsonl").read_text().splitlines()) == 1
    assert run.verify(rerun=1).passed
    for call in (
        "fedsim.check(Mine)",
        "fedsim.audit(Mine)",
        "fedsim.bench(grid, out='other', algorithms=[Mine], address='auto')",
    ):
        with pytest.raises(
            fedsim.UserError,
            match=r"Mine: is defined in this process alone, .*%%writefile my_method\.py",
        ):
            book.cell(call)
