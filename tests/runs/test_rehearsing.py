import subprocess
import sys

from benches import PATIENCE

WITHOUT_GPU = """
import torch
from fedsim.grid.models import Grid
from fedsim.grid.resolve import resolve
from fedsim.methods.messages import Task
from fedsim.runs.cluster import local_cluster
from fedsim.runs.rehearsing import everywhere
from fedsim.planning.node import Node

(variant,) = resolve(Grid.model_validate({"dataset": "digits", "algorithms": "dp-gaussian"})).variants
with local_cluster(Node(1.0, 0.0)):
    everywhere(variant, Task(4, 2, 2), 1.0, 1e-4, "here", torch.device("cuda"), 60.0)
"""


def test_a_machine_without_a_gpu_rehearses_nothing_on_one() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_GPU], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
