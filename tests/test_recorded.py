"""24 small cells, recorded: their rows, the fingerprints of their noise and of their synthetic rows
stay what they are.

``python tests/test_recorded.py`` records them anew; the commit that does so says which numbers
moved, and why.
"""

import hashlib
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
            {"name": "dp-linear", "label": "tuned", "params": SHORT, "tune": {"clip": [0.5, 1.0]}},
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
            {"name": "dp-fedavg-linear", "params": {"rounds": 3}},
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
    """Rows, and what fingerprints them, of all cells, trained and evaluated in this process."""
    from sklearn.datasets import load_digits

    x = load_digits().data
    np.savez(
        folder / "public.npz",
        x=(x + np.random.default_rng(0).standard_normal(x.shape)).astype(np.float32),
    )
    rows = []
    for name, keys in GRIDS.items():
        if name == "public":
            public = {"public": {"npz": str(folder / "public.npz"), "name": "noisy digits"}}
        else:
            public = {}
        run = fedsim.bench(
            {**SMALL, **public, **keys, "name": "recorded"}, out=folder / name, in_process=True
        )
        for row in map(json.loads, (folder / name / "results.jsonl").read_text().splitlines()):
            if "noise" in run.rounds:
                noise = run.rounds.query("cell_id == @row['cell_id']")["noise"].tolist()
            else:
                noise = []
            rows.append(
                {
                    "grid": name,
                    **row,
                    "noise": fingerprint(noise),
                    "synthetic": synthetic(run, row["cell_id"]),
                }
            )
    return [{key: value for key, value in row.items() if key not in MOVES} for row in rows]


def synthetic(run: "fedsim.Run", cell_id: str) -> list[float] | None:
    """Some numbers of the synthetic rows of a cell; None for a classifier."""
    try:
        x = np.asarray(run.generator(cell_id).sample([0, 1, 2], seed=0), dtype=np.float64)
    except fedsim.UserError:
        return None
    return [float(x.sum()), float(np.abs(x).sum()), float(x[0, 0]), float(x[-1, -1])]


def fingerprint(values: list[Any]) -> str:
    """Of whole numbers, the same on every processor."""
    return hashlib.sha256(
        json.dumps([int(value) for value in values if value == value]).encode()
    ).hexdigest()[:16]


def elsewhere(head: dict[str, Any]) -> bool:
    """Whether floating-point numbers may differ in their last bits: another processor, torch or
    number of threads rounds in another way.
    """
    return (
        bool(head["machine"] != machine())
        or "MKL_ENABLE_INSTRUCTIONS" in os.environ
        or os.environ["OMP_NUM_THREADS"] != "1"
    )


def close(new: Any, old: Any) -> bool:
    """Whether numbers, one by one in lists and mappings, are nearly those that were recorded."""
    if isinstance(old, dict | list) and isinstance(new, type(old)) and len(new) == len(old):
        if isinstance(old, dict):
            keys = old
        else:
            keys = range(len(old))
        return all(close(new[key], old[key]) for key in keys)
    return new == old or (isinstance(old, float) and new == pytest.approx(old, rel=1e-3, abs=1e-3))


def machine() -> list[str]:
    import torch

    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "",
    )
    return [
        cpu,
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
    assert [(row["grid"], row["label"], row["epsilon_target"]) for row in now] == [
        (row["grid"], row["label"], row["epsilon_target"]) for row in recorded
    ]
    for new, old in zip(json.loads(json.dumps(now)), recorded, strict=True):
        assert set(old) == set(new)
        for column in old:
            assert new[column] == old[column] or (
                elsewhere(head) and close(new[column], old[column])
            ), (old["label"], column)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        lines = [{"machine": machine()}, *measured(Path(scratch))]
    RECORDED.parent.mkdir(exist_ok=True)
    RECORDED.write_text("".join(json.dumps(line) + "\n" for line in lines))
