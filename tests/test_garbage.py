import subprocess
import sys

from fedsim.garbage import OLDEST

CYCLE = """
import gc, sys
from fedsim.garbage import look_rarely

class Left:
    def __del__(self):
        print("collected")

before = gc.get_threshold()
if sys.argv[1] == "rarely":
    look_rarely()
    assert gc.get_threshold() == (*before[:2], {oldest}), gc.get_threshold()
left = Left()
left.itself = left
left = None
"""


def output(how: str) -> str:
    done = subprocess.run([sys.executable, "-c", CYCLE.format(oldest=OLDEST), how], capture_output=True, text=True, check=True)
    return done.stdout


def test_a_process_that_looks_rarely_does_not_look_for_garbage_as_it_ends() -> None:
    assert (output("always"), output("rarely")) == ("collected\n", "")


def test_a_worker_looks_rarely_from_the_start() -> None:
    code = "import fedsim.runs.worker, gc; print(gc.get_threshold()[2])"
    assert int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) == OLDEST
