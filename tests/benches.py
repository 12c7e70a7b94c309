"""Runs commands and benches, waits for conditions, and has plug-ins that misbehave."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedsim.results.columns import Row
from fedsim.results.join import read_results
from fedsim.runs.engine import InProcess
from fedsim.runs.prepare import Node

PATIENCE = 600
"""Seconds after which something hangs, however busy the machine is."""
TIMES = ("seconds", "train_seconds", "evaluation_seconds")
"""Fields of a row that are another every time."""
PLUGIN = '''
import os
from pathlib import Path

from baselines.weight_noise_cvae import WeightNoiseCVAE, WeightNoiseCVAEParams


class TroubleParams(WeightNoiseCVAEParams):
    how: str = "raise"
    healed: str = "no such file"


class Trouble(WeightNoiseCVAE):
    """Breaks in round 3, in the server step or at the clients, until the file `healed` exists."""

    Params = TroubleParams

    def server_step(self, server, round_, total):
        print(f"round {round_.number} at the server")
        if round_.number == 2 and not Path(self.params.healed).exists():
            if self.params.how == "raise":
                raise ZeroDivisionError("the third round\\nis broken")
            if self.params.how == "raise without a word":
                raise AssertionError
            if self.params.how == "exit":
                os._exit(3)
        return super().server_step(server, round_, total)

    def client_round(self, clients, round_, broadcast):
        if round_.number == 2 and 0 in clients.members and not Path(self.params.healed).exists():
            if self.params.how == "client raises":
                raise ZeroDivisionError("a client is broken")
            if self.params.how == "client exits":
                os._exit(3)
        return super().client_round(clients, round_, broadcast)


class Optimist(WeightNoiseCVAE):
    """Claims a 32nd of its sensitivity."""

    def sensitivity(self):
        return self.clip() / 32
'''


def run_process(
    command: Sequence[str | Path], folder: Path, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder and return it with what it printed."""
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, **options
    )


def wait_until(holds: Callable[[], object], timeout: float = PATIENCE) -> None:
    """Return as soon as ``holds`` is true; fail after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < end, f"not within {timeout} s"
        time.sleep(0.02)


@dataclass(frozen=True)
class Done:
    """The end of a command."""

    returncode: int
    stdout: str
    stderr: str


def assert_refused(done: Done, words: str) -> None:
    """Assert that a command ended by a user's mistake: with one line, which has these words."""
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr


@dataclass(frozen=True)
class Ran:
    """The results of a bench."""

    code: int
    output: str
    folder: Path

    @property
    def rows(self) -> list[Row]:
        """Rows in the grid's order."""
        return read_results(self.folder).rows

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """Round records."""
        return read_results(self.folder).rounds()

    def log(self, row: Row) -> str:
        """A cell's log."""
        return (self.folder / "logs" / f"{row.cell_id}.log").read_text()


def keep_claims(patch: pytest.MonkeyPatch) -> None:
    """Let methods claim what they do, although a test replaces code of fedsim."""
    patch.setattr("fedsim.plugins.claims.is_untouched", lambda cls: True)


def run_in_process(patch: pytest.MonkeyPatch, node: Node | None = None) -> None:
    """Train what a command trains in this process, in place of Ray."""
    keep_claims(patch)
    patch.setattr(
        "fedsim.runs.ray.local_cluster", lambda asked: nullcontext(InProcess(node or asked))
    )


def slowness() -> float:
    """Return how many times longer work takes now than on an idle machine."""
    start = time.perf_counter()
    work = time.process_time()
    while time.process_time() - work < 0.3:
        pass
    return max(1.0, (time.perf_counter() - start) / 0.3)


def interruptible() -> None:
    """Let Ctrl-C reach a new process, even if a shell runs the tests in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
