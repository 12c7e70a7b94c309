"""One local Ray cluster for all tests in this process, a folder of plug-ins that its workers can import, and a bench on it."""

import io
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from benches import PLUGIN, Ran
from cells import NODES
from rich.console import Console

from fedsim.grid.models import Grid
from fedsim.runtime.bench import run_bench
from fedsim.runtime.cluster import local_cluster
from fedsim.simulation.preflight import prepare


@pytest.fixture(scope="session")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module ``plugin``."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "plugin.py").write_text(PLUGIN)
    return folder


@pytest.fixture(scope="session")
def ray_cluster(plugins: Path) -> Iterator[None]:
    """Four CPUs by count, started in the plug-ins' folder as ``fedsim bench`` would be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(plugins)
        patch.syspath_prepend(str(plugins))
        with local_cluster(NODES[0]):
            yield


@pytest.fixture
def bench(ray_cluster: None, tmp_path: Path) -> Callable[..., Ran]:
    """Runs a grid on the shared cluster, in the folder ``name``."""

    def run(grid: Grid, name: str = "run", *, retry_failed: bool = False, max_parallel: int | None = None) -> Ran:
        console = Console(file=io.StringIO(), width=200)
        prepared = prepare(grid, NODES, max_parallel)
        code = run_bench(prepared, tmp_path / name, console, nullcontext(), retry_failed=retry_failed)
        return Ran(code, console.file.getvalue(), tmp_path / name)  # type: ignore[attr-defined]

    return run
