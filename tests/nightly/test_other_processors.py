"""The tests of numbers by other instructions of the processor, and by two threads, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[1]
ROOMS = ("privacy", "methods", "models", "baselines", "algorithms", "training", "evidence/check")
FILES = ("test_contract.py", "test_recorded.py")
PROCESSORS = {
    "torch without vector instructions": {"ATEN_CPU_CAPABILITY": "default"},
    "torch with AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "MKL with SSE4.2": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "two threads": {"OMP_NUM_THREADS": "2"},
}


@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_ordinary_tests_of_numbers_pass(processor: str) -> None:
    command = [sys.executable, "-m", "pytest", "-n", "0", *(str(TESTS / part) for part in (*ROOMS, *FILES))]
    done = subprocess.run(command, env=os.environ | PROCESSORS[processor], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
