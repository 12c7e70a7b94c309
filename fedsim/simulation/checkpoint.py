"""Checkpoints of a running cell: tensors as safetensors, the rest as JSON in its header; nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedsim.atomic import discard, replaced
from fedsim.methods.messages import Tensors
from fedsim.regular import unread
from fedsim.simulation.state import Checkpoint, described

FACTS = ("round", "ledger", "uplink_bytes", "secret")
"""What a checkpoint holds beside tensors."""


class Checkpoints:
    """The checkpoint file of one cell; a new one replaces the old one at once or not at all.

    Args:
        path: the file; its folder is made when the first checkpoint is written.
        every: seconds between checkpoints.
    """

    def __init__(self, path: Path, every: float = 30.0) -> None:
        self.path, self.every = path, every
        self._last = time.monotonic()

    def __call__(self, capture: Callable[[], Checkpoint]) -> None:
        """Write a checkpoint if enough time has passed since the last one."""
        if time.monotonic() - self._last >= self.every:
            try:
                self.save(capture())
            except OSError as error:  # a cell can do without
                warnings.warn(f"{self.path} cannot be written ({unread(error)}); the cell goes on without a new checkpoint", stacklevel=2)
            self._last = time.monotonic()

    def save(self, progress: Checkpoint) -> None:
        """Write ``progress``, for the owner's eyes alone: private client state is in it, and the root of secret noise."""
        tensors = {k: v.contiguous() for k, v in progress.tensors.items()}
        facts = {"cell": self.path.stem, **{name: getattr(progress, name) for name in FACTS}}
        content = save(tensors, {"progress": json.dumps(facts), "sha256": _digest(facts, tensors)})
        with replaced(self.path, 0o600) as part:
            part.write_bytes(content)

    def load(self) -> Checkpoint | None:
        """The last checkpoint; None if there is none, or with a warning if it is not what was saved for this cell."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                head = file.metadata() or {}
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
            facts = json.loads(head["progress"])
            if facts["cell"] != self.path.stem or head["sha256"] != _digest(facts, tensors):
                raise ValueError("its facts and tensors are not those that were saved")
            return Checkpoint(tensors=tensors, **{name: facts[name] for name in FACTS})
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            warnings.warn(f"{self.path} cannot be used ({unread(error)}); the cell begins again", stacklevel=2)
            return None

    def remove(self) -> None:
        """The cell is finished."""
        discard(self.path)


def _digest(facts: Mapping[str, Any], tensors: Tensors) -> str:
    """SHA-256 of the facts and of every tensor's name, dtype, shape and values."""
    digest = hashlib.sha256(json.dumps([facts, described(tensors)]).encode())
    for _, value in sorted(tensors.items()):
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
