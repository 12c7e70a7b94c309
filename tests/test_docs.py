import re
import shlex
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from benches import Done, Ran
from cells import small_grid

from fedsim.cli.new import STARTER
from fedsim.grid.read import load_grid

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs" / "data.md"
ALGORITHMS = ROOT / "docs" / "algorithms.md"
RESULTS = ROOT / "docs" / "results.md"
ACCOUNTING = ROOT / "docs" / "accounting.md"
RELIABILITY = ROOT / "docs" / "reliability.md"
CLUSTER = ROOT / "docs" / "cluster.md"
AUDIT = ROOT / "docs" / "audit.md"
PAGES = sorted(set((ROOT / "docs").glob("*.md")) - {DATA, ALGORITHMS, RESULTS, ACCOUNTING, RELIABILITY, CLUSTER, AUDIT})


def commands(page: Path) -> list[str]:
    return [line.strip() for line in page.read_text().splitlines() if line.startswith(("    fedsim ", "    python "))]


COMMANDS = [command for page in PAGES for command in commands(page)]


def test_the_pages_hold_commands() -> None:
    assert COMMANDS


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_pages_runs(line: str, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    program, *arguments = shlex.split(line)
    done = command(*arguments)
    assert (program, done.returncode) == ("fedsim", 0), done.stderr
    assert "ε reached" in done.stdout


def test_the_grid_of_the_data_page_is_valid(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", DATA.read_text(), re.S)
    (tmp_path / "g.yaml").write_text(text)
    assert load_grid(tmp_path / "g.yaml").partition.given.site_column == "scanner"


def test_the_grid_of_the_page_is_valid(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "grid.md").read_text(), re.S)
    grid = yaml.safe_load(text)
    grid["algorithms"].remove("my_file:MyMethod")
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(grid))
    assert load_grid(tmp_path / "g.yaml").name == "my-grid"


def test_the_file_of_the_algorithms_page_is_the_starter() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", ALGORITHMS.read_text(), re.S)
    assert code == STARTER.read_text()


def test_every_command_of_the_results_page_runs_on_two_runs_of_one_grid(
    folder: Path, command: Callable[..., Done], bench: Callable[..., Ran]
) -> None:
    assert len(commands(RESULTS)) == 4
    for name in ("quickstart", "quickstart-again"):
        bench(small_grid("dp-gaussian", "dp-gmm", seeds=[0, 1]), f"runs/{name}")
    for line in commands(RESULTS):
        done = command(*shlex.split(line)[1:])
        assert done.returncode == 0, line + done.stdout + done.stderr
        told = ("everything (4 rows)", "dp-gaussian − dp-gmm", "4 finished cells judged by today's code already")
        assert any(words in done.stdout.replace("$-$", "−") for words in told)


SAYS = {"account": "one more round", "plan": "noise norm", "diagnose": "no ε", "prove": "rows proved", "statement": "not covered"}


def test_every_command_of_the_accounting_page_runs(folder: Path, command: Callable[..., Done], bench: Callable[..., Ran]) -> None:
    bench(small_grid("dp-gaussian", "fedhypevae", epsilon=[2]), "runs/quickstart")
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    found = [shlex.split(line)[1:] for line in commands(ACCOUNTING)]
    assert {line[0] for line in found} == set(SAYS)
    for line in found:
        done = command(*line)
        assert done.returncode == 0, f"{line}{done.stdout}{done.stderr}"
        assert SAYS[line[0]] in done.stdout


def test_the_command_of_the_reliability_page_runs(
    folder: Path, command: Callable[..., Done], bench: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = commands(RELIABILITY)
    bench(small_grid("dp-gaussian", seeds=[0, 1, 2], resources={"clients_per_actor": "all"}), "runs/quickstart")
    monkeypatch.setattr("fedsim.runs.cluster.local_cluster", lambda node: nullcontext())  # the bench's still runs
    done = command(*shlex.split(line)[1:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 3 finished cells run again: equal to the last bit in rows and rounds" in done.stdout


def test_the_files_of_the_cluster_page_are_what_slurm_and_kuberay_take(tmp_path: Path, command: Callable[..., Done]) -> None:
    """That they run is a test among the slow faults, as far as one machine allows."""
    (script,) = re.findall(r"```bash\n(.*?)```", CLUSTER.read_text(), re.S)
    (tmp_path / "job.sh").write_text(script)
    subprocess.run(["bash", "-n", "job.sh"], cwd=tmp_path, check=True)
    (text,) = re.findall(r"```yaml\n(.*?)```", CLUSTER.read_text(), re.S)
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    for pod in pods:
        mounted = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}
    known = command("bench", "--help").stdout
    for line in (job["spec"]["entrypoint"], *commands(CLUSTER)):
        assert [option for option in shlex.split(line) if option.startswith("--") and option not in known] == []


def test_every_command_of_the_audit_page_runs(folder: Path, command: Callable[..., Done], bench: Callable[..., Ran]) -> None:
    bench(small_grid("dp-gaussian"), "runs/quickstart")
    assert len(commands(AUDIT)) == 4
    for line in commands(AUDIT):
        done = command(*shlex.split(line)[1:])
        assert done.returncode == 0, line + done.stdout + done.stderr
        assert "not refuted" in done.stdout or "AUC" in done.stdout


def test_the_grid_of_the_audit_page_is_valid(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", AUDIT.read_text(), re.S)
    (tmp_path / "g.yaml").write_text(text)
    assert load_grid(tmp_path / "g.yaml").audit is not None


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_link_of_the_pages_leads_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = [(page, *link) for page in pages for link in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text())]
    assert links
    for page, path, anchor in links:
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {path}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {path}#{anchor}"
