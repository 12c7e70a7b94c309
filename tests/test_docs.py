import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from benches import PATIENCE, Done, Ran
from cells import small_grid
from pictures import save_encoder, save_medmnist, save_milk10k

from fedsim.data.encoding.encoder import REVISIONS
from fedsim.grid.read import load_grid
from fedsim.kit.new import STARTER
from fedsim.results.store import ResultStore

ROOT = Path(__file__).parents[1]
FEDSIM = Path(sys.executable).with_name("fedsim")
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


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder and an environment in which the paper's data and encoder are at their places: small ones, and no network."""
    folder = tmp_path_factory.mktemp("desk")
    save_medmnist(folder / "home/.medmnist/organsmnist_224.npz", train=66, test=33, size=224)
    (folder / "home/.cache/fedsim/milk10k").mkdir(parents=True)
    save_milk10k(folder / "home/.cache/fedsim/milk10k")
    save_encoder(folder / "hub/models--facebook--dinov2-base/snapshots" / REVISIONS["facebook/dinov2-base"])
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    places = {"HOME": str(folder / "home"), "HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    return folder, {key: value for key, value in os.environ.items() if key not in ("FEDSIM_CACHE", "XDG_CACHE_HOME")} | places


def test_every_command_of_the_data_page_runs_in_its_order(desk: tuple[Path, dict[str, str]]) -> None:
    folder, environment = desk
    assert len(commands(DATA)) == 6
    for command in commands(DATA):
        done = subprocess.run(shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, command + done.stdout + done.stderr
    made = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in (".npz", ".png") and "home" not in str(path)}
    pictures = {"runs/paper/curves/partitions.png", "runs/milk/curves/privacy_utility.png"}
    assert made >= {"organsmnist.npz", "milk10k.npz", "synth.npz"} | pictures


def test_the_python_of_the_data_page_runs(desk: tuple[Path, dict[str, str]]) -> None:
    folder, environment = desk
    (code,) = re.findall(r"```python\n(.*?)```", DATA.read_text(), re.S)
    script = code + "assert len(rows) == 1\nassert x.shape == (3, 16)\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


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


def test_every_command_of_the_algorithms_page_runs_in_its_order(tmp_path: Path) -> None:
    assert len(commands(ALGORITHMS)) == 4
    for command in commands(ALGORITHMS):
        program, *arguments = shlex.split(command)
        done = subprocess.run([FEDSIM.with_name(program), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, command + done.stdout + done.stderr
    rows = {(row.label, row.epsilon_target): row for row in ResultStore(tmp_path / "runs" / "my_method").rows()}
    assert {row.status for row in rows.values()} == {"ok"}
    point = rows["my-method", 8.0]
    assert point.claim == "checked"
    assert point.balanced_accuracy is not None
    assert point.balanced_accuracy > 0.7


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


def test_the_command_of_the_reliability_page_runs(folder: Path, bench: Callable[..., Ran]) -> None:
    (line,) = commands(RELIABILITY)
    bench(small_grid("dp-gaussian", seeds=[0, 1, 2], resources={"clients_per_actor": "all"}), "runs/quickstart")
    program, *arguments = shlex.split(line)
    done = subprocess.run([FEDSIM.with_name(program), *arguments], cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 3 finished cells run again: equal to the last bit in rows and rounds" in done.stdout


def test_the_files_of_the_cluster_page_are_what_slurm_and_kuberay_take(tmp_path: Path) -> None:
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
    known = subprocess.run([FEDSIM, "bench", "--help"], capture_output=True, text=True, timeout=PATIENCE).stdout
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
