"""What a local step of dp-cvae costs: the product's, beside its authors' public code; interleaved in one run.

    git clone https://github.com/myng15/federated-dp-cvae PUBLIC
    python benchmarks/dp_cvae_public.py PUBLIC [--rounds 10] [--json FILE]

Both train the published network on clients of 1,280 rows of 1,280 dimensions with 11 classes; a step takes a Poisson sample of 256 of
them on average. The product's round, through `train`, is 25 such steps of each of 10 clients; of the public code an epoch of one
client, five steps by Opacus in its memory manager, is timed as often as the product's round is.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
import warnings
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from opacus import PrivacyEngine
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, TensorDataset

from fedsim.methods.algorithm import solved_plan
from fedsim.methods.messages import Task
from fedsim.planning.process import settle
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool, build_algorithm
from fedsim.training.rounds import train

DIM, CLASSES, CLIENTS, OWN, BATCH = 1_280, 11, 10, 1_280, 256
EPSILON, DELTA, CLIP = 1.0, 1e-4, 1.5


@dataclass(frozen=True)
class Record:
    """The median processor time of one client's local step, and how many times the product's that is."""

    code: str
    ms_a_step: float
    ratio_to_fedsim: float


def product(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> tuple[Callable[[], None], int]:
    """A round of dp-cvae, and how many local steps of a client it is."""
    algorithm = build_algorithm("dp-cvae", {}, Task(DIM, CLASSES, CLIENTS))
    plan = solved_plan(algorithm, EPSILON, DELTA)
    rows = tuple(np.array_split(np.arange(len(x)), CLIENTS))
    spec = CohortSpec("dp-cvae", {}, algorithm.task, plan, Seeds(0), tuple(range(CLIENTS)), rows)
    rounds = train(algorithm, LocalPool([Cohort(spec, x, y)]), plan, Seeds(0))
    return lambda: cast(None, next(rounds)), CLIENTS * cast(Any, algorithm.params).local_steps


def public(checkout: Path, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> tuple[Callable[[], None], int]:
    """An epoch of the public code's trainer for its first client, and how many steps it is."""
    code = _module(checkout / "models" / "cvae.py")
    settings = Namespace(enable_dp=True, max_grad_norm=CLIP, epsilon=EPSILON, delta=DELTA)
    trainer = code.CVAETrainer(code.CVAE(DIM, 100, CLASSES, 256, "cpu"), settings, "cpu", Path(tempfile.gettempdir()) / "unused", CLASSES)
    rows = TensorDataset(torch.from_numpy(x[:OWN]), torch.from_numpy(y[:OWN]))
    # as its `fit` does, which would also evaluate and write a checkpoint
    trainer.model, trainer.optimizer, loader = PrivacyEngine().make_private_with_epsilon(
        module=trainer.model,
        optimizer=trainer.optimizer,
        data_loader=DataLoader(rows, batch_size=BATCH, shuffle=True, generator=torch.Generator().manual_seed(0)),
        epochs=20,
        target_epsilon=EPSILON,
        target_delta=DELTA,
        max_grad_norm=CLIP,
    )
    return lambda: trainer.train_epoch(loader), len(loader)


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("public_cvae", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Measure, print, and write the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("public", type=Path, help="a checkout of the public code")
    parser.add_argument("--rounds", type=int, default=10, help="interleaved rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here as a JSON list")
    options = parser.parse_args()
    settle(1)
    warnings.filterwarnings("ignore")
    stream = np.random.default_rng(0)
    x = stream.standard_normal((CLIENTS * OWN, DIM), dtype=np.float32)
    x, y = x / np.linalg.norm(x, axis=1, keepdims=True), stream.integers(CLASSES, size=len(x))
    steps = {"fedsim": product(x, y), "public code": public(options.public, x, y)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(-1, options.rounds):
        for name, (run, count) in steps.items():
            start = time.process_time()
            run()
            if round_ >= 0:
                times[name].append((time.process_time() - start) * 1e3 / count)
    medians = {name: statistics.median(values) for name, values in times.items()}
    records = [Record(name, round(ms, 2), round(ms / medians["fedsim"], 2)) for name, ms in medians.items()]
    shown = Table(title="A local step of one client of dp-cvae (median, processor time)")
    for heading in ("code", "ms", "x fedsim"):
        shown.add_column(heading)
    for record in records:
        shown.add_row(record.code, f"{record.ms_a_step:.2f}", f"{record.ratio_to_fedsim:.2f}")
    Console(width=120).print(shown)
    if options.json:
        options.json.write_text(json.dumps([asdict(record) for record in records], indent=1) + "\n")


if __name__ == "__main__":
    main()
