"""The same cell by other instructions of the processor, in processes of their own."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from test_last_bit import ENTRIES, close, ended, shown

pytestmark = pytest.mark.slow
PROCESSORS = {
    "the plainest products of MKL": {"MKL_CBWR": "COMPATIBLE"},
    "no vector instructions in torch": {"ATEN_CPU_CAPABILITY": "default"},
}
ELSEWHERE = ("dp-gaussian", "dp-gmm", "fedhypevae", "fedhypevae-warm", "fedhypevae-sites")


def everything() -> dict[str, Any]:
    return {f"{name}, {trust}": shown(*ended(ENTRIES[name], trust=trust)) for name in ELSEWHERE for trust in ("aggregate", "silo")}


def test_scores_and_codes_are_those_of_another_processor() -> None:
    shared = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    others = [subprocess.Popen([sys.executable, __file__], env=shared | each, stdout=subprocess.PIPE) for each in PROCESSORS.values()]
    here = everything()
    for other in others:
        there = json.loads(other.communicate()[0])
        for name in here:
            close(here[name], there[name])


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(everything()))
