"""A head and two workers that share no folder: what a grid needs travels; and the cluster's
token.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from benches import PATIENCE, run_process, wait_until
from plug_ins import changed
from processes import FEDSIM, environment

from fedsim.results.join import read_results

PORT = 6389
RAY = FEDSIM.with_name("ray")
GRID = """
dataset: {name: digits, limit: 200}
algorithms: [{name: "below/mine.py:MyMethod", params: {rounds: 200}, label: mine}]
clients: 4
epsilon: 4
seeds: [0, 1, 2]
evaluation: {per_class: 10}
resources: {clients_per_actor: all}
"""
SECRET = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef"}
pytestmark = pytest.mark.slow


def may_mount() -> bool:
    return (
        os.geteuid() == 0
        and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a plug-in that imports a file beside it."""
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "beside.py").write_text("FACTOR = 1.0\n")
    method = changed(
        "from collections.abc import", "from beside import FACTOR\nfrom collections.abc import"
    )
    (tmp_path / "below" / "mine.py").write_text(
        method.replace("self.params.beta", "FACTOR * self.params.beta")
    )
    (tmp_path / "g.yaml").write_text(GRID)
    return tmp_path


@pytest.fixture
def cluster(project: Path) -> Iterator[Callable[..., list[subprocess.Popen[bytes]]]]:
    """Start a head of no CPU and two workers of one, in namespaces of their own, which see neither
    the project nor each other's files.
    """
    scratch = tempfile.mkdtemp(prefix="r", dir="/tmp")
    with ExitStack() as stack:

        def started(*command: str, **variables: str) -> subprocess.Popen[bytes]:
            nothing = subprocess.DEVNULL
            how = {
                "stdout": nothing,
                "stderr": nothing,
                "start_new_session": True,
                "env": environment(**variables),
                "cwd": "/",
            }
            process = subprocess.Popen(command, **how)  # type: ignore[call-overload]
            stack.callback(end, process)
            return process

        def start(*options: str, **variables: str) -> list[subprocess.Popen[bytes]]:
            common = ["--block", "--disable-usage-stats"]
            head = [
                str(RAY),
                "start",
                "--head",
                f"--port={PORT}",
                f"--temp-dir={scratch}",
                "--num-cpus=0",
            ]
            head += options or ["--include-dashboard=false"]
            worker = [str(RAY), "start", f"--address=127.0.0.1:{PORT}", "--num-cpus=1"]
            started(*head, *common, **variables)
            joined = ["ray", "status", f"--address=127.0.0.1:{PORT}"]
            env = environment(**variables)
            wait_until(lambda: subprocess.run(joined, capture_output=True, env=env).returncode == 0)
            hide = f'mount -t tmpfs none {scratch} && mount -t tmpfs none {project} && exec "$@"'
            workers = [
                started("unshare", "--mount", "sh", "-c", hide, "sh", *worker, *common, **variables)
                for _ in range(2)
            ]
            wait_until(
                lambda: b"/2.0 CPU" in subprocess.run(joined, capture_output=True, env=env).stdout
            )
            return workers

        yield start
    shutil.rmtree(scratch, ignore_errors=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started."""
    if process.poll() is None:
        family = [*psutil.Process(process.pid).children(recursive=True), process]
    else:
        family = []
    for each in family:
        each.send_signal(signal.SIGKILL)
    process.wait()


def bench(
    folder: Path,
    address: str,
    *options: str,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    command = [FEDSIM, "bench", "--grid", "g.yaml", "--address", address, *options]
    return run_process(command, folder, env=environment(**variables))


@pytest.mark.skipif(not may_mount(), reason="namespaces need root")
def test_plug_ins_and_checkpoints_travel_between_machines(
    project: Path,
    cluster: Callable[..., list[subprocess.Popen[bytes]]],
) -> None:
    workers = cluster()
    command = [FEDSIM, "bench", "--grid", "g.yaml", "--address", f"[::1]:{PORT}"]
    process = subprocess.Popen(
        command,
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    run = project / "runs" / "g"
    wait_until(lambda: len(read_results(run).rounds()) > 3)
    end(workers[0])
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    disturbed = {row.cell_id: row.scores for row in read_results(run).rows}
    assert len(disturbed) == 3
    shutil.rmtree(project / "runs")
    local = run_process([FEDSIM, "bench", "--grid", "g.yaml"], project)
    assert local.returncode == 0, local.stdout + local.stderr
    assert {row.cell_id: row.scores for row in read_results(run).rows} == disturbed


def test_a_token_is_asked_for_and_what_to_set_is_said(
    project: Path,
    cluster: Callable[..., list[subprocess.Popen[bytes]]],
) -> None:
    cluster(**SECRET)
    refused = bench(
        project,
        f"127.0.0.1:{PORT}",
        "--dry-run",
        RAY_AUTH_TOKEN="another token of thirty-two signs",
    )
    assert refused.returncode == 2
    assert "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH" in refused.stderr
    let_in = bench(
        project,
        f"127.0.0.1:{PORT}",
        "--dry-run",
        RAY_AUTH_TOKEN=SECRET["RAY_AUTH_TOKEN"],
    )
    assert let_in.returncode == 0, let_in.stderr
    assert "ε reached" in let_in.stdout
