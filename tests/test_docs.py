import json
import math
import re
import runpy
import shlex
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import typer.main
import yaml
from benches import Done, Ran
from cells import small_grid
from notebooks import Notebook

from fedsim.cli import app
from fedsim.grid.read import load_grid
from fedsim.results.run import read_results
from fedsim.runs.engine import InProcess
from fedsim.runs.need import Node

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs" / "data.md"
ALGORITHMS = ROOT / "docs" / "algorithms.md"
PRIVACY = ROOT / "docs" / "privacy.md"
CLUSTER = ROOT / "docs" / "machines.md"
SITES = ROOT / "docs" / "sites.md"
RELEASE = ROOT / "docs" / "release.md"
PYTHON = ROOT / "docs" / "python.md"
PUBLIC = ROOT / "docs" / "public.md"
TUNING = ROOT / "docs" / "tuning.md"


def in_process(node: Node) -> AbstractContextManager[InProcess]:
    """In place of Ray: what a command starts is tested elsewhere."""
    return nullcontext(InProcess(node))


def commands(page: Path) -> list[str]:
    return [line.strip() for line in page.read_text().splitlines() if re.match(r" {4,}(fedsim|python) ", line)]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


COMMANDS = [
    pytest.param(line, id=line[:60])
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
    for line in re.findall(r"^ {4,}(?:.*&& )?(fedsim [a-z].*)$", page.read_text(), re.M)
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_pages_exists_with_its_options(line: str) -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    _, name, *arguments = shlex.split(line.rstrip("\\"), comments=True)
    options = {option for parameter in known[name].params for option in parameter.opts}
    assert [each for each in arguments if each.startswith("--") and each.partition("=")[0] not in options] == []


def test_the_grids_of_the_data_page_are_valid(tmp_path: Path) -> None:
    first, second = blocks(DATA, "yaml")
    (tmp_path / "g.yaml").write_text(first)
    assert load_grid(tmp_path / "g.yaml").partition.column == "scanner"
    (tmp_path / "g.yaml").write_text(second)
    encoders = ("dinov2-small", "efficientnet-lite0", "exported")
    names = [f"{name} ({encoder})" for name in ("ham10000", "chest-xray") for encoder in encoders]
    assert [spec.display for spec in load_grid(tmp_path / "g.yaml").sets] == [*names, "organamnist (dinov2-small, bfloat16, 4 views)"]


@pytest.mark.parametrize("page", [SITES, PRIVACY], ids=lambda page: page.stem)
def test_the_grids_of_further_pages_are_valid(page: Path, tmp_path: Path) -> None:
    (text,) = blocks(page, "yaml")
    (tmp_path / "g.yaml").write_text(text)
    grid = load_grid(tmp_path / "g.yaml")
    assert (grid.unit_column == "patient", grid.audit is not None) == (page == SITES, page == PRIVACY)


def test_the_grid_of_the_page_is_valid(tmp_path: Path) -> None:
    (text,) = blocks(ROOT / "docs" / "grid.md", "yaml")
    grid = yaml.safe_load(text)
    grid["algorithms"].remove("my_file.py:MyMethod")
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(grid))
    assert load_grid(tmp_path / "g.yaml").name == "my-grid"


def test_the_public_page_from_first_to_last(folder: Path, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    write, method = blocks(PUBLIC, "python")
    (grid,) = blocks(PUBLIC, "yaml")
    (folder / "public.yaml").write_text(grid)
    (folder / "mine.py").write_text(method)
    exec(compile(write, str(PUBLIC), "exec"), {})
    monkeypatch.setattr("fedsim.runs.ray.local_ray", in_process)
    done = [command(*shlex.split(line)[1:]) for line in commands(PUBLIC)]
    assert [each.returncode for each in done] == [0] * len(done)
    assert len(done) == 2
    assert "public data: noisy digits, 1797 × 64, no labels, licence CC BY 4.0; used by dp-gaussian in a public subspace" in done[0].stdout
    assert "†: uses public data: noisy digits" in done[1].stdout
    half = {row.label: row.balanced_accuracy for row in read_results("runs/public").rows if row.epsilon_target == 0.5}
    assert half["dp-gaussian in a public subspace"] > half["dp-gaussian"] + 0.05  # type: ignore[operator]
    assert runpy.run_path(str(folder / "mine.py"))["Mine"].uses_public(None)


def save_methods(folder: Path) -> None:
    """The methods of the algorithms page, and their grid, as files with the names that the page gives them."""
    for name, text in zip(("noisy_means", "personal_linear"), blocks(ALGORITHMS, "python"), strict=True):
        (folder / f"{name}.py").write_text(text)
    (text,) = blocks(ALGORITHMS, "yaml")
    (folder / "personal.yaml").write_text(text)


def test_the_two_methods_of_the_algorithms_page_learn(folder: Path, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    save_methods(folder)
    monkeypatch.setattr("fedsim.runs.ray.local_ray", in_process)
    one, two = (line for line in commands(ALGORITHMS) if "noisy_means" in line or "personal" in line)
    exec(shlex.split(one)[2])
    assert command(*shlex.split(two)[1:]).returncode == 0
    (one_shot,) = read_results("runs/noisy_means").rows
    assert one_shot.balanced_accuracy is not None
    assert one_shot.balanced_accuracy > 0.8
    personal, shared = (row.balanced_accuracy for row in read_results("runs/personal").rows if row.epsilon_target == math.inf)
    assert personal is not None
    assert shared is not None
    assert personal > shared + 0.05


def test_a_release_from_first_to_last(folder: Path, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.setattr("fedsim.runs.ray.local_ray", in_process)
    lines = commands(RELEASE)
    assert [line.split()[1] for line in lines] == ["bench", "statement", "verify", "release", "synth"]
    for line in lines:
        done = command(*shlex.split(line)[1:])
        assert done.returncode == 0, line + done.stdout + done.stderr
    assert json.loads(Path("synth.json").read_text())["release"] == "under its epsilon"


def test_a_search_from_first_to_last(folder: Path, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = blocks(TUNING, "yaml")
    (folder / "search.yaml").write_text(text)
    monkeypatch.setattr("fedsim.runs.ray.local_ray", in_process)
    for line in commands(TUNING):
        done = command(*shlex.split(line)[1:])
        assert done.returncode == 0, line + done.stdout + done.stderr
    default, tuned, free = read_results("runs/search").rows
    assert (default.tuning, tuned.claim, free.claim) == (None, "proved", "heuristic")
    assert "dp-linear tuned (free, on test rows)" in Path("board.md").read_text()


SAYS = {
    "account": "at δ = 1e-5",
    "audit": "not refuted",
    "audit runs/quickstart": "AUC",
    "bench": "noise in units of the signal",
    "verify": "rows proved",
    "statement": "not covered",
    "dp_cvae": "its noisy steps spend 4.231",
    "flower_fixed_clipping": "with equal weights it would be ε = 73.6",
    "nvflare_svt": "ε = 10,342 a round",
}
"""What commands print, by their names; a script's, by the name of its file."""


def test_every_command_of_the_privacy_page_runs(
    bench: Callable[..., Ran],
    folder: Path,
    command: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("fedsim.runs.ray.local_ray", in_process)
    bench(small_grid("dp-gaussian", "fedhypevae", epsilon=[2]), "runs/quickstart")
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    seen = set()
    for program, *arguments in map(shlex.split, commands(PRIVACY)):
        if program == "python":
            name = Path(arguments[1]).stem
            monkeypatch.setattr("sys.argv", arguments)
            runpy.run_path(arguments[0], run_name="__main__")
            printed = capsys.readouterr().out
        else:
            done = command(*arguments)
            assert done.returncode == 0, f"{arguments}{done.stdout}{done.stderr}"
            printed = done.stdout
            name = next(name for name in (" ".join(arguments), arguments[0]) if name in SAYS)
        if "runs/equal" in arguments:
            rows = read_results("runs/equal").rows
            assert len({row.partition_hash for row in rows}) == 4
            assert len({(row.generator, row.balanced_accuracy) for row in rows}) == 1
        else:
            seen.add(name)
            assert SAYS[name] in printed
    assert seen == set(SAYS)


def test_the_files_of_the_cluster_page_are_what_slurm_and_kuberay_take(tmp_path: Path, command: Callable[..., Done]) -> None:
    """That they run is a test among the slow faults, as far as one machine allows."""
    (script,) = blocks(CLUSTER, "bash")
    (tmp_path / "job.sh").write_text(script)
    subprocess.run(["bash", "-n", "job.sh"], cwd=tmp_path, check=True)
    (text,) = blocks(CLUSTER, "yaml")
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    known = command("bench", "--help").stdout + "--grid"
    for line in (job["spec"]["entrypoint"], *(line for line in commands(CLUSTER) if "fedsim bench" in line)):
        assert [option for option in shlex.split(line) if option.startswith("--") and option not in known] == []


def test_every_block_of_the_page_on_python_runs_as_a_cell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.runs.ray.local_ray", in_process)
    book = Notebook(monkeypatch)
    for code in blocks(PYTHON, "python"):
        book.cell(code)
    assert sorted(book.names["means"].index) == [
        (label, epsilon) for label in ("dp-gaussian", "dp-linear", "mine") for epsilon in (1.0, 8.0)
    ]
    assert book.names["losses"].iloc[-1] < book.names["losses"].iloc[0]
    assert book.names["figure"].axes[0].get_title() == "my title"
    assert "\\toprule" in book.names["text"]


def text_of(page: Path) -> str:
    """A page in Markdown without its code; of a notebook its cells in Markdown."""
    if page.suffix == ".md":
        return re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    cells = json.loads(page.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", text_of(page), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_link_of_the_pages_leads_somewhere() -> None:
    docs = ROOT / "docs"
    pages = [*ROOT.glob("*.md"), *docs.glob("*.md"), *docs.glob("*.ipynb"), *docs.glob("reference/*.md")]
    links = [(page, *link) for page in pages for link in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text_of(page))]
    assert links
    for page, path, anchor in links:
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {path}"
        # what is generated has its headings on the site alone, whose build looks for them
        assert not anchor or target.parent.name == "reference" or anchor in anchors(target), f"{page.name}: {path}#{anchor}"
