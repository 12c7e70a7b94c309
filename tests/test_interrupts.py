"""A signal ends a command in any case."""

import signal
import subprocess
import sys

import pytest
from benches import PATIENCE

STUCK = """
import sys, threading
from fedsim.interrupts import interrupts

with interrupts():
    try:
        print("ready", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        if {stuck}:
            threading.Event().wait()
            print("not reached", flush=True)
        sys.exit(130)
"""


@pytest.mark.parametrize("stuck", [False, True])
def test_signals_end_a_command_soon(stuck: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUCK.format(stuck=stuck)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGHUP)
        assert process.wait(PATIENCE) == 130
