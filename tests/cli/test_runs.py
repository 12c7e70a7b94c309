import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from benches import Done, Ran
from cells import small_grid
from rows import add_rows, make_row

from fedsim.results.store import ResultStore
from fedsim.words import encodable

Fedsim = Callable[..., Done]


def run_folder(folder: Path, *labels: str, **fields: float) -> None:
    """A run of two seeds a label."""
    for label in labels:
        for seed in range(2):
            scores = {"balanced_accuracy": 0.5 + 0.1 * seed} | fields
            add_rows(folder, make_row(cell_id=f"{label}{seed}", label=label, seed=seed, **scores))


def test_a_report_is_printed_as_tables_and_nothing_is_drawn(tmp_path: Path, fedsim: Fedsim) -> None:
    run_folder(tmp_path / "run", "a_b", "c")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    markdown, latex = fedsim("report", "run", "--format", "md"), fedsim("report", "run", "--format", "latex")
    assert (markdown.returncode, latex.returncode) == (0, 0), markdown.stderr + latex.stderr
    assert r"| a\_b | proved | 0.550 |" in markdown.stdout
    assert r"a\_b & 0.550 \\" in latex.stdout
    assert "paired differences" in markdown.stdout
    assert "paired differences" in latex.stdout
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


def test_one_table_of_two_folders_is_chosen_by_options(tmp_path: Path, fedsim: Fedsim) -> None:
    run_folder(tmp_path / "one", "a", "b")
    run_folder(tmp_path / "two", "c", balanced_accuracy=0.9, macro_f1=0.25)
    table = fedsim("report", "one", "two", "--methods", "c,a", "--digits", "2", "--format", "md")
    assert [line.split(" | ")[0] for line in table.stdout.splitlines() if line.startswith("|")][2:] == ["| c", "| a"]
    assert "| c | proved | **0.90** |" in table.stdout
    assert "**macro" not in fedsim("report", "two", "--measure", "macro_f1").stdout
    assert "0.250" in fedsim("report", "two", "--measure", "macro_f1").stdout
    paired = fedsim("report", "one", "two", "--pair", "c", "a", "--format", "csv")
    assert paired.stdout.splitlines()[1].startswith("balanced_accuracy-differences,")
    assert ",c − a," in paired.stdout


def test_one_figure_is_drawn_as_a_pdf(tmp_path: Path, fedsim: Fedsim) -> None:
    run_folder(tmp_path / "run", "a", "b")
    done = fedsim("report", "run", "--figure", "out/curve.pdf", "--width", "column", "--methods", "a")
    assert (done.returncode, done.stdout) == (0, "figure: out/curve.pdf\n")
    assert (tmp_path / "out/curve.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--figure", "a.png"], "--figure a.png: is not a .pdf file; give a.pdf"),
        (["--figure", "a.pdf", "--digits", "2"], "--digits: is for tables; leave out --figure"),
        (["--width", "column"], "--width: is for figures; give --figure"),
        (["--figure", "a.pdf", "--width", "wide"], "--width wide: is no width"),
        (["--figure", "a.pdf", "--over", "rounds"], "--over rounds: no two cells of a method"),
        (["--table", "result"], "--table: there is no table 'result'"),
        (["--pair", "a", "c"], "--pair: there is no method 'c'"),
    ],
)
def test_options_that_do_not_do_are_one_line_and_nothing_is_written(
    tmp_path: Path, fedsim: Fedsim, options: list[str], message: str
) -> None:
    run_folder(tmp_path / "run", "a", "b")
    done = fedsim("report", "run", *options)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_statement_is_of_one_cell_and_in_latex(tmp_path: Path, fedsim: Fedsim) -> None:
    run_folder(tmp_path / "run", "a_b", "c")
    done = fedsim("statement", "run", "--cell", "a_b0", "--format", "latex")
    assert done.stdout.startswith("\\paragraph{Privacy of a\\_b}\n\\begin{description}\n\\item[claim] proved: ")
    assert done.stdout.count("\\paragraph") == 1
    assert fedsim("statement", "run", "--cell", "x").returncode == 2


def test_a_run_folder_may_have_any_name(tmp_path: Path, fedsim: Fedsim) -> None:
    for name in ("r\udcff", "[red]x", "ä b"):
        run_folder(tmp_path / name, "a")
        done = fedsim("report", name)
        assert done.returncode == 0, done.stderr
        assert f"<title>{encodable(name)}" in (tmp_path / name / "report.html").read_text()
    assert "[red]x: every ε again" in fedsim("prove", "[red]x").stdout


def test_an_unknown_format_or_a_folder_without_results_is_a_mistake(tmp_path: Path, fedsim: Fedsim) -> None:
    run_folder(tmp_path / "run", "a")
    unknown, missing = fedsim("report", "run", "--format", "xml"), fedsim("report", "none", "--format", "md")
    assert (unknown.returncode, missing.returncode, unknown.stdout, missing.stdout) == (2, 2, "", "")
    assert "'xml' is not one of" in unknown.stderr
    assert "none: there are no results here" in missing.stderr
    assert not (tmp_path / "none").exists()


def test_two_runs_are_equal_differ_or_share_nothing(tmp_path: Path, fedsim: Fedsim) -> None:
    for name, labels, fields in (("a", "xy", {}), ("b", "xy", {}), ("c", "xz", {"balanced_accuracy": 0.75}), ("d", "z", {})):
        run_folder(tmp_path / name, *labels, **fields)
    equal, differing, foreign = fedsim("compare", "a", "b"), fedsim("compare", "a", "c"), fedsim("compare", "a", "d")
    assert (equal.returncode, differing.returncode, foreign.returncode) == (0, 1, 2)
    assert "equal to the last bit: everything (4 rows)" in equal.stdout
    assert "only in a: y" in differing.stdout
    assert "only in c: z" in differing.stdout
    assert "+0.2" in differing.stdout
    assert (foreign.stdout, len(foreign.stderr.strip().splitlines())) == ("", 1)
    assert "a and d: no setting and seed is in both" in foreign.stderr
    missing = fedsim("compare", "a", "none")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "none: there are no results here" in missing.stderr


def test_a_saved_generator_gives_a_file_of_synthetic_embeddings_with_its_manifest(
    tmp_path: Path, bench: Callable[..., Ran], fedsim: Fedsim
) -> None:
    bench(small_grid("fedhypevae", epsilon=4.0), "out")
    done = fedsim("synth", "out", "--synthesis", "client:3", "--per-class", "5", "--out", "made/synth.npz")
    assert done.returncode == 0, done.stderr
    assert "50 synthetic embeddings of 64 dimensions" in done.stdout
    with np.load(tmp_path / "made/synth.npz") as held:
        assert held["x"].shape == (50, 64)
        assert np.bincount(held["y"]).tolist() == [5] * 10
        manifest = json.loads(str(held["manifest"]))
    assert manifest == json.loads((tmp_path / "made/synth.json").read_text())
    assert 3.9 < manifest["epsilon"] <= 4
    assert (manifest["unit"], manifest["trust"], manifest["claim"]) == ("example", "aggregate", "proved")
    refused = fedsim("synth", "out", "--synthesis", "client:4", "--out", "more.npz")
    assert (refused.returncode, (tmp_path / "more.npz").exists()) == (2, False)


def test_synthetic_rows_are_a_parquet_file_or_a_folder_for_the_hub(tmp_path: Path, bench: Callable[..., Ran], fedsim: Fedsim) -> None:
    bench(small_grid("dp-gaussian", privacy={"noise": "secret"}), "run")
    done = fedsim("synth", "run", "--format", "hf", "--out", "hub", "--per-class", "3")
    assert (done.returncode, "30 synthetic embeddings" in done.stdout) == (0, True), done.stderr
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == ["README.md", "croissant.json", "data"]
    assert fedsim("synth", "run", "--format", "parquet", "--out", "rows.parquet").returncode == 0
    assert (tmp_path / "rows.parquet").read_bytes().startswith(b"PAR1")
    assert "is not a .parquet file; give rows.parquet" in fedsim("synth", "run", "--format", "parquet", "--out", "rows.npz").stderr
    assert "--repo: means nothing for --format npz" in fedsim("synth", "run", "--out", "x.npz", "--repo", "a/b").stderr


def test_a_generator_leaves_as_a_package_if_its_noise_is_secret_and_is_drawn_from_there(
    tmp_path: Path, bench: Callable[..., Ran], fedsim: Fedsim
) -> None:
    (row,) = [bench(small_grid("dp-gaussian", privacy={"noise": noise}), noise).rows for noise in ("seeded", "secret")][1]
    refused = fedsim("release", "seeded", "--out", "package")
    assert (refused.returncode, len(refused.stderr.splitlines()), (tmp_path / "package").exists()) == (2, 1, False)
    assert "may not be released" in refused.stderr
    done = fedsim("release", "secret", "--out", "package")
    assert done.returncode == 0, done.stderr
    assert "dp-gaussian, ε = 1 at δ = 0.0001, claim proved" in done.stdout
    facts, tensors = sorted((tmp_path / "package").iterdir())
    assert (facts.suffix, tensors.suffix, facts.stem) == (".json", ".safetensors", tensors.stem)
    # every hash of the data is an exact function of them
    (training,) = ResultStore("secret").trainings()
    assert not [
        each for each in (row.cell_id, training, row.dataset_hash, row.partition_hash) if str(each) in facts.stem + facts.read_text()
    ]
    assert fedsim("synth", "package", "--out", "synth.npz").returncode == 0


def test_release_runs_no_code_that_a_run_names_unless_it_is_trusted(tmp_path: Path, bench: Callable[..., Ran], fedsim: Fedsim) -> None:
    bench(small_grid("dp-gaussian", privacy={"noise": "secret"}), "run")
    (tmp_path / "evil.py").write_text('open("evil ran", "w").close()\nfrom baselines.dp_gaussian import DPGaussian as X\n')
    path = tmp_path / "run" / "trainings.jsonl"
    path.write_text(path.read_text().replace('"algorithm": "dp-gaussian"', '"algorithm": "evil.py:X"'))
    done = fedsim("release", "run", "--out", "package")
    assert done.returncode == 2
    assert "give --trust-plugin if you trust that code" in done.stderr
    assert not (tmp_path / "evil ran").exists()
    assert fedsim("release", "run", "--out", "package", "--trust-plugin").returncode == 0
    assert (tmp_path / "evil ran").exists()
