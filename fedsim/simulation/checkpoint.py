"""Checkpoints of a running cell: tensors as safetensors, the rest as JSON in its header; nothing is ever unpickled."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fedsim.atomic import discard, replaced
from fedsim.simulation.state import Checkpoint

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
            self.save(capture())
            self._last = time.monotonic()

    def save(self, progress: Checkpoint) -> None:
        """Write ``progress``, for the owner's eyes alone: private client state is in it, and the root of secret noise."""
        facts = {name: getattr(progress, name) for name in FACTS}
        with replaced(self.path, 0o600) as part:
            save_file({k: v.contiguous() for k, v in progress.tensors.items()}, part, {"progress": json.dumps(facts)})

    def load(self) -> Checkpoint | None:
        """The last checkpoint; None if there is none or it cannot be read."""
        try:
            with safe_open(self.path, "pt") as file:
                facts = json.loads((file.metadata() or {})["progress"])
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return Checkpoint(tensors=tensors, **{name: facts[name] for name in FACTS})
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    def remove(self) -> None:
        """The cell is finished."""
        discard(self.path)
