"""The fixtures of all tests: commands, plug-ins, benches and a Ray cluster."""

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

# One thread per process, so that parallel tests and their processes do not compete for cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # a busy machine would leave the workers nothing

import torch
from benches import PLUGIN, Done, Ran
from cells import NODES, WITH_GPUS
from hypothesis import settings
from rich.console import Console

from fedsim.cli import main
from fedsim.grid.models import Grid
from fedsim.runs.bench import run_bench
from fedsim.runs.engine import InProcess
from fedsim.runs.prepare import Node, prepare

# A busy machine may take its time, and the same code gives the same result again.
settings.register_profile("fedsim", deadline=None, derandomize=True)
settings.load_profile("fedsim")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run all tests on the shared Ray cluster in one worker, so that there is one cluster."""
    for item in items:
        if "_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture(scope="session", autouse=True)
def threads() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, for plug-ins; imports from it are forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(
            getattr(
                module,
                "__file__",
                None,
            )
            or ""
        ).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Run a ``fedsim`` command that starts no Ray, in this process and the working folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["fedsim", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return Done(int(end.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module ``plugin``."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "plugin.py").write_text(PLUGIN)
    return folder


@pytest.fixture(scope="session")
def _cluster(plugins: Path) -> Iterator[None]:
    """A cluster with four CPUs and two counted GPUs, started in the folder of plug-ins."""
    from fedsim.runs.ray import local_cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(plugins)
        patch.syspath_prepend(str(plugins))
        with local_cluster(WITH_GPUS[0]):
            yield


@pytest.fixture
def ray_cluster(_cluster: None) -> Iterator[None]:
    """The session's cluster; resources that a test has left reserved are freed after it."""
    yield
    from ray import (
        PlacementGroupID,
    )  # not before fedsim's cluster, which sets what Ray reads as it is imported
    from ray.util.placement_group import (
        PlacementGroup,
        placement_group_table,
        remove_placement_group,
    )

    for group, placed in placement_group_table().items():
        if placed["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))


@pytest.fixture
def bench(
    plugins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Ran]]:
    """Run a grid in this process, one job after another, in the folder ``name``."""
    monkeypatch.chdir(plugins)
    monkeypatch.syspath_prepend(str(plugins))

    def run(grid: Grid, name: str = "run", **how: Any) -> Ran:
        return ran(grid, tmp_path / name, InProcess(NODES[0]), **how)

    yield run
    torch.set_flush_denormal(False)


@pytest.fixture
def ray_bench(ray_cluster: None, tmp_path: Path) -> Callable[..., Ran]:
    """Run a grid on the shared cluster, in the folder ``name``, one cell after another."""
    from fedsim.runs.ray import RayEngine

    def run(grid: Grid, name: str = "run", **how: Any) -> Ran:
        return ran(grid, tmp_path / name, RayEngine(), **how)

    return run


def ran(
    grid: Grid,
    folder: Path,
    engine: Any,
    *,
    nodes: Sequence[Node] = NODES,
    parallel: int | None = 1,
    retry_failed: bool = False,
    keep_going: bool = True,
) -> Ran:
    console = Console(file=io.StringIO(), width=200)
    prepared = prepare(grid, nodes, parallel, keep_going=keep_going)
    code = run_bench(
        prepared,
        folder,
        console,
        nullcontext(engine),
        retry_failed=retry_failed,
    )
    return Ran(
        code,
        console.file.getvalue(),
        folder,
    )  # type: ignore[attr-defined]
