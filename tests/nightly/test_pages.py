"""The commands of the pages that start Ray, read pictures or train for minutes, as processes of
their own.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from benches import PATIENCE
from pictures import save_chest_xray, save_encoder, save_ham10000, save_medmnist, save_milk10k
from test_docs import ALGORITHMS, DATA, ROOT, commands, save_methods

from fedsim.data.spec import REVISIONS
from fedsim.results.join import read_results

pytestmark = pytest.mark.slow
FEDSIM = Path(sys.executable).with_name("fedsim")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder and an environment in which the paper's data and encoder are at their places: small
    ones, and no network.
    """
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
        save_encoder(
            folder
            / f"hub/models--facebook--dinov2-{size}/snapshots"
            / REVISIONS[f"facebook/dinov2-{size}"]
        )
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    places = {
        "HOME": str(folder / "home"),
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    return folder, {
        key: value
        for key, value in os.environ.items()
        if key not in ("FEDSIM_CACHE", "XDG_CACHE_HOME")
    } | places


def test_every_command_of_the_data_page_runs_in_its_order(
    desk: tuple[Path, dict[str, str]],
) -> None:
    folder, environment = desk
    for command in commands(DATA):
        done = subprocess.run(
            shlex.split(command),
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, command + done.stdout + done.stderr
    made = {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.suffix in (".npz", ".png") and "home" not in str(path)
    }
    assert made >= {"organsmnist.npz", "chest.npz"}


def test_every_command_of_the_algorithms_page_runs_in_its_order(tmp_path: Path) -> None:
    save_methods(tmp_path)
    for command in commands(ALGORITHMS):
        program, *arguments = shlex.split(command)
        done = subprocess.run(
            [FEDSIM.with_name(program), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, command + done.stdout + done.stderr
    rows = {
        (row.label, row.epsilon_target): row
        for row in read_results(tmp_path / "runs" / "my_method").rows
    }
    assert {row.status for row in rows.values()} == {"ok"}
    point = rows["my-method", 8.0]
    assert (point.claim, point.check) == ("stated", "passed")
    assert point.balanced_accuracy is not None
    assert point.balanced_accuracy > 0.7
