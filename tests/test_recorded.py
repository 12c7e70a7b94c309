"""24 small cells give the results, the noise and the synthetic examples that were recorded.

``python tests/test_recorded.py`` records them anew; the commit that does so says which numbers
moved, and why.
"""

import hashlib
import json
import os
import platform
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import public_digits

import fedsim

RECORDED = Path(__file__).parent / "recorded" / "rows.jsonl"
SHORT = {"rounds": 20}
SMALL: dict[str, Any] = {
    "dataset": {"name": "digits", "limit": 200},
    "clients": 4,
    "alpha": 1.0,
    "epsilon": [1, float("inf")],
    "delta": 1e-4,
    "evaluation": {"per_class": 10, "per_client": True},
}
GRIDS: dict[str, dict[str, Any]] = {
    "examples": {
        "algorithms": [
            {"name": "fedhypevae", "params": SHORT},
            "fedhypevae-warm",
            "fedhypevae-sites",
            "dp-gaussian",
            "dp-gmm",
            {"name": "dp-linear", "params": SHORT},
            {
                "name": "dp-linear",
                "label": "tuned",
                "params": SHORT,
                "tune": {"clip": [0.5, 1.0]},
            },
        ],
        "tune": {"trials": 2},
    },
    "clients": {
        "unit": "client",
        "algorithms": [
            {
                "name": "fedhypevae",
                "label": "paper",
                "params": {"form": "paper", "rounds": 3, "local_steps": 2},
            },
            {"name": "weight-noise", "params": {"rounds": 3}},
            {
                "name": "dp-fedavg-linear",
                "params": {"rounds": 3, "local_steps": 5, "clip": 1.0},
            },
        ],
    },
    "public": {
        "algorithms": [{"name": "dp-gaussian", "label": "public", "params": {"project": 16}}]
    },
    "not private": {
        "algorithms": [{"name": "fedavg-cvae", "params": {"rounds": 3}}],
        "epsilon": [float("inf")],
        "seeds": [0, 1],
    },
}
"""Grids by name; a grid differs from :data:`SMALL` in what stands here."""
MOVES = {
    "cell_id",
    "source",
    "evaluation_source",
    "counted_by",
    "generator",
    "versions",
    "params",
    "seconds",
    "train_seconds",
    "evaluation_seconds",
}
"""Columns of the clock and of the code: not compared."""


def measured(folder: Path) -> list[dict[str, Any]]:
    """Train and evaluate all cells in this process, and return their results."""
    results = []
    for name, keys in GRIDS.items():
        grid = {**SMALL, **keys, "name": "recorded"}
        if name == "public":
            grid["public"] = public_digits()
        run = fedsim.bench(grid, out=folder / name, in_process=True)
        assert isinstance(run, fedsim.Run)
        for line in (run.folder / "results.jsonl").read_text().splitlines():
            result = json.loads(line)
            cell_id = result["cell_id"]
            noise = []
            if "noise" in run.rounds:
                noise = run.rounds.query("cell_id == @cell_id")["noise"].tolist()
            result |= {
                "grid": name,
                "noise": fingerprint(noise),
                "synthetic": synthetic(run, cell_id),
            }
            results.append({key: result[key] for key in result if key not in MOVES})
    return results


def synthetic(run: "fedsim.Run", cell_id: str) -> list[float] | None:
    """Return some numbers of the synthetic examples of a cell; None for a classifier."""
    try:
        x = np.asarray(run.generator(cell_id).sample([0, 1, 2], seed=0), dtype=np.float64)
    except fedsim.UserError:
        return None
    return [
        float(x.sum()),
        float(np.abs(x).sum()),
        float(x[0, 0]),
        float(x[-1, -1]),
    ]


def fingerprint(values: list[Any]) -> str:
    """Return a hash of whole numbers, which is the same on every processor."""
    text = json.dumps([int(value) for value in values if value == value])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def elsewhere(head: dict[str, Any]) -> bool:
    """Return whether another processor, torch or number of threads may round differently."""
    return (
        bool(head["machine"] != machine())
        or "MKL_ENABLE_INSTRUCTIONS" in os.environ
        or os.environ["OMP_NUM_THREADS"] != "1"
    )


def close(new: Any, old: Any) -> bool:
    """Return whether all numbers in lists and mappings are nearly those that were recorded."""
    if isinstance(old, dict):
        return new.keys() == old.keys() and all(close(new[key], old[key]) for key in old)
    if isinstance(old, list):
        return len(new) == len(old) and all(map(close, new, old))
    if isinstance(old, float):
        return bool(new == pytest.approx(old, rel=1e-3, abs=1e-3))
    return bool(new == old)


def machine() -> list[str]:
    """Return the processor and the versions on which the last bits of results depend."""
    cpu = re.search(r"model name\s*: *(.*\S)", Path("/proc/cpuinfo").read_text())
    return [
        cpu[1] if cpu else "",
        torch.backends.cpu.get_cpu_capability(),
        torch.__version__,
        platform.python_version(),
        np.__version__,
    ]


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return measured(tmp_path_factory.mktemp("recorded"))


def test_recorded_cells_give_the_rows_that_they_gave(now: list[dict[str, Any]]) -> None:
    head, *recorded = map(json.loads, RECORDED.read_text().splitlines())
    for new, old in zip(json.loads(json.dumps(now)), recorded, strict=True):
        assert set(old) == set(new)
        for column in old:
            is_same = new[column] == old[column]
            if elsewhere(head):
                is_same = close(new[column], old[column])
            assert is_same, (old["grid"], old["label"], column)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        lines = [{"machine": machine()}, *measured(Path(scratch))]
    RECORDED.parent.mkdir(exist_ok=True)
    RECORDED.write_text("".join(json.dumps(line) + "\n" for line in lines))
