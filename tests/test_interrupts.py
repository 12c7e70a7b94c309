"""An interruption ends a command in any case."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benches import PATIENCE

STUCK = """
import sys, threading, time

from fedsim.interrupts import interrupts, soon

class Stuck:
    def write(self, text):
        threading.Event().wait()

with soon(), interrupts():
    try:
        print("ready", file=sys.stderr, flush=True)
        sys.stdout = Stuck()
        time.sleep(1000)
    except KeyboardInterrupt:
        time.sleep(1000)
"""


FULL = """
import os, sys, time

from fedsim.interrupts import interrupts, soon

with soon(), interrupts():
    try:
        os.set_blocking(1, False)
        try:
            while True:
                os.write(1, b"-" * 4096)
        except BlockingIOError:
            os.set_blocking(1, True)
        print("ready", file=sys.stderr, flush=True)
        time.sleep(1000)
    except KeyboardInterrupt:
        time.sleep(1000)
"""


@contextmanager
def interrupted(script: str) -> Iterator[subprocess.Popen[str]]:
    """A process that said it is ready, was sent SIGTERM then, and has ended as an interrupted command does."""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(PATIENCE) == 130
        finally:
            process.kill()
        yield process


def test_a_command_that_goes_on_and_cannot_print_any_more_is_ended() -> None:
    with interrupted(STUCK) as process:
        assert process.stdout is not None
        assert process.stdout.read() == "interrupted; the same command goes on\n"


def test_a_command_whose_output_is_not_read_any_more_ends() -> None:
    with interrupted(FULL):
        pass
