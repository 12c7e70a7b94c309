import io
import json
import shutil
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
from benches import Done, Ran, assert_refused
from cells import small_grid
from notebooks import Notebook
from rows import make_published

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
    "audit": {"pairs": 20, "rounds": 1},  # as few pairs as a bound needs
}
Command = Callable[..., Done]
Bench = Callable[..., Ran]
pytestmark = pytest.mark.xdist_group("run")  # so that one process makes it


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fedsim.Run]:
    """A finished run."""
    run = fedsim.bench(
        GRID,
        out=tmp_path_factory.mktemp("runs") / "run",
        in_process=True,
    )
    assert isinstance(run, fedsim.Run)
    yield run
    torch.set_flush_denormal(False)


def test_package_lists_its_names_and_loads_nothing_before_use() -> None:
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
    for name in names.split():
        assert getattr(fedsim, name) is not None


# --- frames ---


def test_rows_are_a_frame_with_a_column_per_parameter(run: fedsim.Run) -> None:
    assert len(run.rows) == 8
    rounds = run.rows["params.rounds"]
    assert rounds.dropna().unique().tolist() == [3]
    assert str(rounds.dtype) == "Int64"


def test_clients_are_a_frame_with_a_line_per_client_and_cell(run: fedsim.Run) -> None:
    assert len(run.clients) == 4 * 8


def test_audits_are_a_frame_with_a_claim_per_method_and_budget(run: fedsim.Run) -> None:
    claims = run.audits[["label", "epsilon_target", "pairs"]].drop_duplicates()
    assert claims.to_numpy().tolist() == [
        ["dp-gaussian", 2.0, 20],
        ["dp-gaussian", 8.0, 20],
        ["linear", 2.0, 20],
        ["linear", 8.0, 20],
    ]


def test_rounds_are_a_frame_with_a_line_per_release(run: fedsim.Run) -> None:
    rounds = run.rounds.query("label == 'linear' and epsilon_target == 8 and seed == 1")
    assert rounds.groupby("release").size().to_dict() == {"mean": 1, "dp-sgd": 3}


def test_tidy_scores_are_a_frame_in_long_format(run: fedsim.Run) -> None:
    cell = ["method", "dataset", "alpha", "clients", "epsilon", "seed"]
    assert list(run.tidy) == [*cell, "measure", "score"]


def test_differences_are_those_of_the_scores_by_seed(run: fedsim.Run) -> None:
    scores = run.tidy.query("measure == 'balanced_accuracy' and epsilon == 8")
    by_seed = scores.pivot(index="seed", columns="method", values="score")
    differences = run.differences(
        "dp-gaussian",
        "linear",
        where="epsilon_target == 8",
    )
    (found,) = differences.to_dict("records")
    assert found["mean"] == pytest.approx((by_seed["dp-gaussian"] - by_seed["linear"]).mean())
    assert 0 < found["p_holm"] <= 1


def test_differences_need_two_seeds(run: fedsim.Run) -> None:
    message = "two seeds of balanced_accuracy are needed"
    with pytest.raises(fedsim.UserError, match=message) as mistake:
        run.differences("dp-gaussian", "linear", where="seed == 0")
    assert mistake.value._render_traceback_() == [f"UserError: {mistake.value}"]


# --- tables and figures ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "bset"}, r"order: there is no 'bset'; did you mean 'best'\? \(known: best, "),
        (
            {"table": "foo"},
            "table: there is no 'foo'; known: differences, private, results, sites, verdict",
        ),
        ({"subject": "foo"}, "subject: there is no 'foo'; known: dp-gaussian, linear"),
        ({"spread": "foo"}, "spread: there is no 'foo'; known: ci95, range, sd"),
    ],
)
def test_wrong_choice_for_a_table_names_the_right_ones(
    run: fedsim.Run, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(fedsim.UserError, match=f"^{message}"):
        run.table(**options)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("table", {"digits": -1}, "digits: must be at least 0, got -1"),
        ("verify", {"rerun": -1}, "rerun: must be at least 0, got -1"),
        ("synth", {"out": "s.npz", "per_class": 0}, "per_class: must be at least 1, got 0"),
        ("synth", {"out": "s.npz", "seed": -1}, "seed: must be at least 0, got -1"),
        (
            "synth",
            {"out": "s.npz", "format": "zip"},
            "format: there is no 'zip'; known: hf, npz",
        ),
    ],
)
def test_value_out_of_range_is_refused_and_nothing_is_written(
    run: fedsim.Run, folder: Path, method: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(fedsim.UserError, match=f"^{message}$"):
        getattr(run, method)(**options)
    assert not list(folder.iterdir())


def test_wrong_format_of_a_table_names_the_right_ones(run: fedsim.Run) -> None:
    message = r"^format: there is no 'tex'; did you mean 'latex'\? \(known: csv, html, latex, md\)$"
    with pytest.raises(fedsim.UserError, match=message):
        run.table().text("tex")  # type: ignore[arg-type]


def test_table_has_the_mean_scores(run: fedsim.Run) -> None:
    linear = run.rows.query("label == 'linear' and epsilon_target == 8")
    mean = f"{linear['balanced_accuracy'].mean():.3f}"
    assert any(mean in text for text in run.table().texts["ε = 8"])


def test_verdict_compares_all_measures(run: fedsim.Run, command: Command) -> None:
    verdict = run.table(table="verdict")
    assert {"balanced", "accuracy", "AUROC", "all"} <= set(verdict.texts.columns)
    assert "dp-gaussian: won/level/lost against" in verdict.text("md")
    done = command("report", str(run.folder), "--table", "verdict", "--subject", "linear")
    assert done.returncode == 0, done.stderr
    assert "linear: won/level/lost against" in done.stdout


def test_verdict_needs_two_methods(run: fedsim.Run) -> None:
    message = "table: no two methods have results in the same settings"
    with pytest.raises(fedsim.UserError, match=message):
        run.table(table="verdict", where="label == 'linear'")


def test_cells_of_two_folders_count_once_in_the_table_of_sites(
    run: fedsim.Run, tmp_path: Path
) -> None:
    copy = shutil.copytree(run.folder, tmp_path / "run")
    numbers = run.table(table="sites").numbers
    assert run.table(copy, table="sites").numbers.equals(numbers)


def test_report_prints_a_table_and_draws_no_page(run: fedsim.Run, command: Command) -> None:
    before = sorted(path.name for path in run.folder.iterdir())
    done = command("report", str(run.folder), "--format", "latex")
    assert done.returncode == 0
    assert "\\toprule" in done.stdout
    assert sorted(path.name for path in run.folder.iterdir()) == before


def test_report_draws_a_figure_into_a_pdf_file(
    run: fedsim.Run, command: Command, tmp_path: Path
) -> None:
    done = command(
        "report",
        str(run.folder),
        "--figure",
        str(tmp_path / "curve.pdf"),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "curve.pdf").read_bytes().startswith(b"%PDF")
    assert_refused(
        command(
            "report",
            str(run.folder),
            "--figure",
            "a.png",
        ),
        "is not a .pdf file",
    )


def test_figure_shows_any_measure(run: fedsim.Run) -> None:
    figure = run.figure(measure="knn_balanced_accuracy")
    assert isinstance(figure, matplotlib.figure.Figure)
    assert "nearest" in figure.axes[0].get_ylabel().replace("\n", " ")
    message = "there is no measure 'acuracy'; did you mean 'accuracy'"
    with pytest.raises(fedsim.UserError, match=message):
        run.figure(measure="acuracy")


# --- notebooks ---


def test_notebook_shows_the_results_of_a_run(run: fedsim.Run) -> None:
    html = run._repr_html_()
    assert html is not None
    for text in (
        "<h2>run</h2>",
        "digits[:200]",
        "8 cells ok",
        ">linear (classifier)</th>",
        f"<code>{run.folder / 'report.html'}</code>",
    ):
        assert text in html


def test_notebook_shows_a_table_with_title_and_notes(run: fedsim.Run) -> None:
    table = run.table()
    html = table._repr_html_()
    assert f"<h3>{table.title}</h3>" in html
    for note in table.notes:
        assert escape(note) in html
    assert html.count("<style>") == 1


def test_notebook_shows_a_figure_without_pyplot(run: fedsim.Run) -> None:
    figure = run.figure()
    figure.axes[0].set_title("my title")
    picture, size = figure._repr_png_()  # type: ignore[attr-defined]
    height, width, _ = matplotlib.image.imread(io.BytesIO(picture), format="png").shape
    assert (width, height) == pytest.approx((2 * size["width"], 2 * size["height"]), abs=2)


def test_notebook_displays_a_figure_as_a_picture(run: fedsim.Run) -> None:
    formatters = pytest.importorskip("IPython.core.formatters")
    data, _ = formatters.DisplayFormatter().format(run.figure())
    assert {"image/png", "text/plain"} <= set(data)


def test_run_without_results_has_no_picture(tmp_path: Path) -> None:
    assert fedsim.Run(tmp_path)._repr_html_() is None


# --- statements and proofs ---


def test_statement_describes_one_cell(run: fedsim.Run) -> None:
    cell = run.rows.query("label == 'dp-gaussian' and epsilon_target == 8").cell_id.iloc[1]
    text = run.statement(cell=cell[:10])
    assert text.splitlines()[0] == "dp-gaussian"
    assert "target 8" in text
    assert "target 2" not in text
    with pytest.raises(fedsim.UserError, match=r"^cell zz: no cells of"):
        run.statement(cell="zz")


def test_verify_proves_every_epsilon(run: fedsim.Run, command: Command) -> None:
    done = command("verify", str(run.folder))
    assert done.returncode == 0, done.stdout
    assert "8 of 8 results proved" in done.stdout


def test_verify_compares_two_run_folders(run: fedsim.Run, command: Command, bench: Bench) -> None:
    folder = str(run.folder)
    done = command("verify", folder, "--with", folder)
    assert done.returncode == 0
    assert "Equal to the last bit: everything (8 results)" in done.stdout
    other = bench(small_grid("dp-gaussian"), "other").folder
    done = command("verify", folder, "--with", str(other))
    assert_refused(done, "have no result of the same setting and seed")


def test_verify_needs_results(run: fedsim.Run, command: Command) -> None:
    assert_refused(command("verify", str(run.folder.parent)), "there are no results here")


# --- generators ---


def test_cell_of_a_run_has_its_generator(run: fedsim.Run) -> None:
    cell = run.rows.query("label == 'dp-gaussian'").cell_id.iloc[0]
    assert run.generator(cell).sample([0, 3]).shape == (2, 64)


def test_synth_writes_embeddings_and_their_manifest(
    tmp_path: Path, bench: Bench, command: Command
) -> None:
    run = str(bench(small_grid("fedhypevae", epsilon=4.0), "out").folder)
    out = tmp_path / "made/synth.npz"
    done = command(
        "synth",
        run,
        "--synthesis",
        "client:3",
        "--per-class",
        "5",
        "--out",
        str(out),
    )
    assert done.returncode == 0, done.stderr
    assert "50 synthetic embeddings of 64 dimensions" in done.stdout
    with np.load(out) as file:
        assert np.bincount(file["y"]).tolist() == [5] * 10
        manifest = json.loads(str(file["manifest"]))
    assert manifest == json.loads(out.with_suffix(".json").read_text())
    assert manifest["unit"] == "example"
    assert manifest["trust"] == "aggregate"
    assert manifest["claim"] == "proved"
    done = command("synth", run, "--synthesis", "client:4", "--out", "more.npz")
    assert_refused(done, "fedsim: --synthesis client:4: there are 4 clients")


def test_synth_warns_of_a_large_delta_without_a_count(
    tmp_path: Path, bench: Bench, command: Command
) -> None:
    grid = small_grid(
        "dp-gaussian",
        delta=0.02,
        dataset={"name": "digits", "limit": 223},
    )
    run = bench(grid).folder
    done = command("synth", str(run), "--out", str(tmp_path / "synth.npz"))
    assert "warning: δ = 0.02 is not below 1/n, where n is" in done.stdout
    assert "223" not in done.stdout.replace(str(tmp_path), "")


def test_synth_writes_a_folder_for_the_hugging_face_hub(
    tmp_path: Path, bench: Bench, command: Command
) -> None:
    run = str(bench(small_grid("dp-gaussian", privacy={"noise": "secret"})).folder)
    hub = tmp_path / "hub"
    done = command("synth", run, str(hub), "--format", "hf", "--per-class", "3")
    assert done.returncode == 0, done.stderr
    assert {"README.md", "data"} <= {path.name for path in hub.iterdir()}


# --- classes that a notebook defines ---

CLASS_OF_A_NOTEBOOK = """
class Mine(DPSGD):
    Params = DPSGDParams
    def build(self, clients):
        return Net(nn.Linear(self.task.dim, WIDTH), nn.Linear(WIDTH, self.task.classes))
    def loss(self, model, batch):
        print('chat')
        return {'ce': nn.functional.cross_entropy(model(batch.x), batch.y, reduction='none')}
    def classifier(self, server):
        return server.model
class Net(nn.Sequential):
    @torch.no_grad()
    def probabilities(self, x):
        return self(x).softmax(1)
"""


@pytest.fixture
def book(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Notebook:
    """A notebook that has defined a method and a grid."""
    book = Notebook(monkeypatch)
    book.cell("import fedsim, torch\nfrom torch import nn\nWIDTH = 6")
    book.cell("from fedsim.methods import DPSGD, DPSGDParams")
    book.cell(CLASS_OF_A_NOTEBOOK)
    book.cell("grid = {'dataset': {'name': 'digits', 'limit': 200}, 'clients': 2, 'alpha': 1.0}")
    return book


def test_class_of_a_notebook_is_benched_in_its_process(
    book: Notebook, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = "fedsim.bench(grid, out='run', algorithms=[{'name': Mine, 'params': {'rounds': 2}}])"
    book.cell(bench)
    book.cell(f"run = {bench}")
    run = book.names["run"]
    (row,) = run.rows[["label", "status", "claim", "params.rounds"]].to_numpy().tolist()
    assert row == ["Mine", "ok", "stated", 2]
    (log,) = (folder / "run/logs").iterdir()
    assert "chat" in log.read_text()
    assert "chat" not in capsys.readouterr().out
    assert len((folder / "run/trainings.jsonl").read_text().splitlines()) == 1
    assert run.verify(rerun=1).passed


@pytest.mark.parametrize(
    "call",
    [
        "fedsim.check(Mine)",
        "fedsim.audit(Mine)",
        "fedsim.bench(grid, out='other', algorithms=[Mine], address='auto')",
    ],
)
def test_class_of_a_notebook_is_refused_by_other_processes(book: Notebook, call: str) -> None:
    message = r"Mine: exists only in this notebook or script, .*%%writefile my_method\.py"
    with pytest.raises(fedsim.UserError, match=message):
        book.cell(call)


# --- published numbers ---

CITED = "published, not run here: Author 2025, Table 2"


@pytest.fixture
def cited(run: fedsim.Run, tmp_path: Path) -> fedsim.Run:
    """The run, as if its grid had a published number."""
    folder = tmp_path / "cited"
    shutil.copytree(run.folder, folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["published"] = [make_published(epsilon=2).model_dump(mode="json")]
    path.write_text(json.dumps(manifest))
    return fedsim.load(folder)


def test_figure_cites_a_published_number(cited: fedsim.Run) -> None:
    (legend,) = cited.figure().legends
    assert any(CITED in text.get_text() for text in legend.get_texts())


def test_figure_of_another_measure_has_no_published_number(cited: fedsim.Run) -> None:
    (legend,) = cited.figure(measure="accuracy").legends
    assert not any(CITED in text.get_text() for text in legend.get_texts())


def test_table_and_terminal_cite_a_published_number(cited: fedsim.Run) -> None:
    assert CITED in cited.table().text("latex")
    assert "DP-CVAE" in repr(cited)


def test_runs_beside_bring_their_published_numbers(run: fedsim.Run, cited: fedsim.Run) -> None:
    assert CITED in run.table(cited.folder).text("md")


def test_published_number_is_in_no_frame(run: fedsim.Run, cited: fedsim.Run) -> None:
    assert cited.rows.equals(run.rows)
    assert cited.tidy.equals(run.tidy)


def test_published_number_is_in_no_statement_proof_and_board(cited: fedsim.Run) -> None:
    assert "DP-CVAE" not in cited.statement()
    assert "DP-CVAE" not in repr(cited.verify())
    assert "DP-CVAE" not in repr(fedsim.board([cited.folder]))
