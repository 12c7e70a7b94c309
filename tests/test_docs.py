"""The pages are true: commands run, grids are valid, methods learn, names and links exist."""

import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import yaml
from benches import Done, run_in_process
from cells import SHIPPED, SMALL
from notebooks import Notebook

import fedsim
from fedsim.commands import app
from fedsim.grid.read import load_grid
from fedsim.results.join import read_results

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ALGORITHMS = DOCS / "algorithms.md"
DATA = DOCS / "data.md"
BENCHMARKS = ROOT / "benchmarks"
PAGES = [
    *ROOT.glob("*.md"),
    *DOCS.glob("*.md"),
]
TWO_SEEDS = SMALL | {
    "epsilon": 2,
    "seeds": [0, 1],
}
RunPage = Callable[[str], dict[str, str]]


def commands(page: Path) -> list[str]:
    return re.findall(r"^ {4,}((?:fedsim|python) .*)$", page.read_text(), re.M)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


@pytest.fixture
def run_page(
    folder: Path,
    command: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
) -> RunPage:
    """Run the commands of a page, but not those on a cluster, and return what each printed."""
    run_in_process(monkeypatch)
    (folder / "benchmarks").symlink_to(BENCHMARKS)

    def run(name: str) -> dict[str, str]:
        page = DOCS / f"{name}.md"
        printed = {}
        for text in blocks(page, "yaml"):
            title = re.match(r"# (\S+)\n", text)
            if title:
                (folder / title[1]).write_text(text)
        grid = TWO_SEEDS | {
            "algorithms": ["dp-gaussian", "fedhypevae-warm"],
        }
        for run in set(re.findall(r"runs/quickstart(?:-again)?", page.read_text())):
            fedsim.bench(grid, out=run)
        for line in commands(page):
            program, *arguments = shlex.split(line)
            if program == "python":
                process = subprocess.run(
                    [sys.executable, *arguments],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                printed[line] = process.stdout
            elif "--address" not in arguments:
                done = command(*arguments)
                assert done.returncode == 0, line + done.stdout + done.stderr
                printed[line] = done.stdout
        return printed

    return run


COMMANDS = [
    pytest.param(line, id=line[:60])
    for page in [*PAGES, *BENCHMARKS.rglob("*.md")]
    for line in re.findall(r"^ {4,}(?:.*&& )?(fedsim [a-z].*)$", page.read_text(), re.M)
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_pages_exists_with_its_options(line: str) -> None:
    _, name, *arguments = shlex.split(
        line.rstrip("\\"),
        comments=True,
    )
    known = {"--help"}
    for parameter in app[name].assemble_argument_collection():
        known.update(parameter.names)
    for word in arguments:
        if word.startswith("--"):
            assert word.partition("=")[0] in known


def test_every_grid_of_the_pages_is_valid(tmp_path: Path) -> None:
    grids = [text for page in PAGES for text in blocks(page, "yaml") if "algorithms:" in text]
    assert len(grids) >= 7
    file = tmp_path / "g.yaml"
    for text in grids:
        grid = yaml.safe_load(text)
        grid["algorithms"] = [
            entry for entry in grid["algorithms"] if entry != "my_file.py:MyMethod"
        ]
        file.write_text(yaml.safe_dump(grid))
        assert load_grid(file).algorithms


def named(pattern: str) -> set[str]:
    """Return the texts in backquotes of all pages that match a pattern."""
    pages = [page.read_text() for page in PAGES if page.name != "CHANGELOG.md"]
    texts = re.findall(r"`([^`\n]+)`", "\n".join(pages))
    return {text for text in texts if re.fullmatch(pattern, text)}


def test_every_algorithm_that_the_pages_name_exists() -> None:
    assert named(r"(dp|fedavg|fedhypevae)-[a-z-]+") <= {*SHIPPED}


def test_every_file_that_the_pages_name_exists() -> None:
    paths = named(r"[\w.]+/[\w./]+\.(py|yaml|sh|md|cfg)")
    assert len(paths) > 10
    for path in paths:
        exists = (ROOT / path).exists() or (ROOT / "fedsim" / path).exists()
        assert exists or "to/" in path, path


def test_commands_of_the_privacy_page(run_page: RunPage) -> None:
    printed = "\n".join(run_page("privacy").values())
    for words in (
        "at δ = 1e-5",
        "not refuted",
        "AUC",
        "results proved",
        "not covered",
        "spent by the noisy steps: ε = 4.23",
    ):
        assert words in printed
    rows = read_results("runs/equal").rows
    assert len({row.partition_hash for row in rows}) == 4
    assert len({row.generator for row in rows}) == 1
    assert len({row.balanced_accuracy for row in rows}) == 1


@pytest.mark.parametrize(
    "page",
    [
        "grid",
        pytest.param("machines", marks=pytest.mark.slow),
    ],
)
def test_commands_of_further_pages(page: str, run_page: RunPage) -> None:
    for line, printed in run_page(page).items():
        words = "results proved"
        if "--dry-run" in line:
            words = "noise in units of the signal"
        assert words in printed, line


def test_commands_of_the_page_on_citing(run_page: RunPage) -> None:
    statement, verdict = run_page("cite").values()
    for line in (
        "claim: proved",
        "relation: add-or-remove-one",
        "budget: ε = 1.999 (target 2)",
    ):
        assert f"  {line}" in statement
    assert "proved: each plan" in verdict


def test_commands_of_the_page_on_results(
    run_page: RunPage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = TWO_SEEDS | {
        "algorithms": ["dp-linear"],
        "scan": {"rounds": [1, 2]},
    }
    fedsim.bench(grid, out=Path("runs/rounds"))
    run_page("results")
    assert len(list(Path().glob("*.pdf"))) == 2
    tracker = MagicMock()
    monkeypatch.setitem(sys.modules, "mlflow", tracker)
    (recipe,) = blocks(DOCS / "results.md", "python")
    exec(recipe, {})
    assert tracker.log_metric.call_count == 4


def test_commands_of_the_public_page(folder: Path, run_page: RunPage) -> None:
    write, method = blocks(DOCS / "public.md", "python")
    exec(write, {})
    _, table, *_ = run_page("public").values()
    assert "† marks a method that uses public data: noisy digits" in table
    scores = {}
    for row in read_results("runs/public").rows:
        if row.epsilon_target == 0.5:
            scores[row.label] = row.balanced_accuracy
    assert scores["dp-gaussian in a public subspace"] > scores["dp-gaussian"] + 0.05
    file = folder / "mine.py"
    file.write_text(method)
    names = runpy.run_path(str(file))
    assert names["Mine"].uses_public(None)


def test_large_data_of_the_data_page_run(
    folder: Path,
    command: Callable[..., Done],
) -> None:
    (write,) = blocks(DATA, "python")
    exec(write, {})
    (grid,) = (text for text in blocks(DATA, "yaml") if text.startswith("# archive.yaml"))
    (folder / "archive.yaml").write_text(grid)
    (line,) = (line for line in commands(DATA) if "archive.yaml" in line)
    dry_run = command(*shlex.split(line)[1:])
    assert "memory of a cell of dp-gaussian" in dry_run.stdout
    fedsim.bench("archive.yaml", in_process=True)
    (row,) = read_results("runs/archive").rows
    assert row.balanced_accuracy is not None
    assert row.balanced_accuracy > 0.9


def test_commands_of_the_page_on_releases(run_page: RunPage) -> None:
    run_page("release")
    description = json.loads(Path("synth.json").read_text())
    assert description["release"] == "under its epsilon"


def test_commands_of_the_page_on_tuning(run_page: RunPage) -> None:
    run_page("tuning")
    default, tuned, free = read_results("runs/search").rows
    assert default.tuning is None
    assert tuned.claim == "proved"
    assert free.claim == "heuristic"
    assert "dp-linear tuned (free, on test rows)" in Path("board.md").read_text()


def save_methods(folder: Path) -> None:
    """Write the method of the algorithms page to the file that the page names."""
    (method,) = blocks(ALGORITHMS, "python")
    (folder / "noisy_means.py").write_text(method)


def test_method_of_the_algorithms_page_learns(folder: Path) -> None:
    save_methods(folder)
    (line,) = (line for line in commands(ALGORITHMS) if "noisy_means" in line)
    exec(shlex.split(line)[2])
    (row,) = read_results("runs/noisy_means").rows
    assert row.balanced_accuracy > 0.8


def test_every_block_of_the_page_on_python_runs_as_a_cell(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_in_process(monkeypatch)
    book = Notebook(monkeypatch)
    for code in blocks(DOCS / "python.md", "python"):
        book.cell(code)
    names = book.names
    settings = product(
        ["dp-gaussian", "dp-linear", "mine"],
        [1.0, 8.0],
    )
    assert sorted(names["means"].index) == list(settings)
    losses = names["losses"]
    assert losses.iloc[-1] < losses.iloc[0]
    assert names["figure"].axes[0].get_title() == "my title"
    assert "\\toprule" in names["text"]


def text_of(page: Path) -> str:
    """Return a page without its code; for a notebook, its cells in Markdown."""
    if page.suffix == ".md":
        return re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    texts = []
    for cell in json.loads(page.read_text())["cells"]:
        if cell["cell_type"] == "markdown":
            texts.append("".join(cell["source"]))
    return "\n\n".join(texts)


def anchors(page: Path) -> set[str]:
    """Return what GitHub calls the headings of a page, and the anchors that it has besides."""
    text = text_of(page)
    names = set(re.findall(r'^<a id="(.+)"></a>$', text, re.M))
    for heading in re.findall(r"^#+ (.*)$", text, re.M):
        words = re.sub(r"[^\w -]", "", heading.lower())
        names.add(words.replace(" ", "-"))
    return names


def test_every_link_of_the_pages_leads_somewhere() -> None:
    pages = [
        *PAGES,
        *DOCS.glob("*.ipynb"),
        *DOCS.glob("reference/*.md"),
        *BENCHMARKS.rglob("*.md"),
    ]
    links = 0
    for page in pages:
        for path, anchor in re.findall(
            r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)",
            text_of(page),
        ):
            links += 1
            target = page.parent / path if path else page
            link = f"{page.name}: {path}#{anchor}"
            assert target.exists(), link
            # Generated pages have their headings on the site alone, whose build checks them.
            if anchor and target.parent.name != "reference":
                assert anchor in anchors(target), link
    assert links
