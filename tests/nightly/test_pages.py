"""The commands of pages that start Ray, read pictures or train for minutes, each in a process."""

import os
import shlex
import sys
from pathlib import Path

import pytest
from benches import run_process
from pictures import save_chest_xray, save_encoder, save_ham10000, save_medmnist, save_milk10k
from test_docs import ALGORITHMS, DATA, ROOT, blocks, commands, save_methods

from fedsim.data.spec import REVISIONS
from fedsim.results.join import read_results

pytestmark = pytest.mark.slow
FEDSIM = Path(sys.executable).with_name("fedsim")


def run(
    arguments: list[str],
    folder: Path,
    environment: dict[str, str] | None = None,
) -> None:
    done = run_process(arguments, folder, env=environment)
    assert done.returncode == 0, " ".join(arguments) + done.stdout + done.stderr


def save_archive(folder: Path) -> None:
    """Write the folder of arrays and the grid that the data page shows."""
    (program,) = (text for text in blocks(DATA, "python") if 'Path("archive")' in text)
    run([sys.executable, "-c", program], folder)
    (grid,) = (text for text in blocks(DATA, "yaml") if text.startswith("# archive.yaml"))
    (folder / "archive.yaml").write_text(grid)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder and an environment with small copies of the paper's data and encoder, offline."""
    folder = tmp_path_factory.mktemp("desk")
    save_medmnist(
        folder / "home/.medmnist/organsmnist_224.npz",
        train=66,
        test=33,
        size=224,
    )
    (folder / "home/.cache/fedsim/milk10k").mkdir(parents=True)
    save_milk10k(folder / "home/.cache/fedsim/milk10k")
    save_ham10000(folder / "home/.cache/fedsim/ham10000")
    save_chest_xray(folder / "home/.cache/fedsim/chest-xray")
    for size in ("base", "small"):
        snapshots = folder / f"hub/models--facebook--dinov2-{size}/snapshots"
        save_encoder(snapshots / REVISIONS[f"facebook/dinov2-{size}"])
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    environment = dict(os.environ)
    for name in ("FEDSIM_CACHE", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    environment["HOME"] = str(folder / "home")
    environment["HF_HUB_CACHE"] = str(folder / "hub")
    environment["HF_HUB_OFFLINE"] = "1"
    return folder, environment


def test_every_command_of_the_data_page_runs_in_its_order(
    desk: tuple[Path, dict[str, str]],
) -> None:
    folder, environment = desk
    save_archive(folder)
    for command in commands(DATA):
        run(shlex.split(command), folder, environment)
    assert (folder / "organsmnist.npz").exists()
    assert (folder / "chest.npz").exists()


def test_every_command_of_the_algorithms_page_runs_in_its_order(tmp_path: Path) -> None:
    save_methods(tmp_path)
    for command in commands(ALGORITHMS):
        program, *arguments = shlex.split(command)
        run([str(FEDSIM.with_name(program)), *arguments], tmp_path)
    rows = read_results(tmp_path / "runs" / "my_method").rows
    assert {row.status for row in rows} == {"ok"}
    *_, point = (row for row in rows if row.label == "my-method" and row.epsilon_target == 8)
    assert point.claim == "stated"
    assert point.check == "passed"
    assert point.balanced_accuracy is not None
    assert point.balanced_accuracy > 0.7
