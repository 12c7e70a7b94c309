"""The state of a training in checkpoints and saved generators: tensors by name, with the owner's name as prefix."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedsim.device import CPU, bytes_of, moved
from fedsim.files import replaced, unread
from fedsim.methods.messages import Server, Tensors
from fedsim.methods.parameters import load_parameters


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training from which it continues bit for bit; with the root of secret noise, if noise is secret."""

    round: int
    tensors: Tensors
    ledger: str
    uplink_bytes: int
    downlink_bytes: int
    secret: int | None = field(default=None, repr=False)


def nested(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors with ``prefix`` and a dot before their names."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def below(prefix: str, tensors: Tensors) -> Tensors:
    """The inverse of :func:`nested`: the tensors with ``prefix``, under their own names."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def copied(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copies on the CPU, which share no memory with the tensors."""
    there = moved(tensors, CPU)
    return {name: value.detach().clone() if there[name] is value else there[name] for name, value in tensors.items()}


def load_server(server: Server, tensors: Tensors) -> None:
    """Load a saved server state."""
    load_parameters(server.model, tensors, "model.")
    server.tensors = moved(copied(below("tensors", tensors)), server.device)


def released_state(server: Server) -> Tensors:
    """The state from which a generator is made: the server's state and the released codes, all of it private.

    Without the optimiser's state, and without parameters that have a mean over iterates.
    """
    kept = {name: value for name, value in server.tensors.items() if not name.startswith("adam.")}
    parameters = {name: p for name, p in server.model.named_parameters() if p.numel() and f"average.{name}" not in kept}
    own = nested("model", copied(parameters)) | nested("tensors", copied(kept))
    return nested("server", own) | nested("codes", copied(server.codes))


FACTS = ("round", "ledger", "uplink_bytes", "downlink_bytes", "secret")
"""The fields of a checkpoint beside its tensors."""
CHECKPOINT_SECONDS = 30.0
"""Seconds between checkpoints."""


def packed(progress: Checkpoint, owner: str) -> bytes:
    """A checkpoint as one safetensors file with its own hash; private client state is in it, and the root of secret noise."""
    facts = {name: getattr(progress, name) for name in FACTS}
    tensors = {name: value.contiguous() for name, value in progress.tensors.items()}
    return save(tensors, {"progress": json.dumps(facts), "sha256": _digest(owner, facts, tensors)})


def unpacked(content: bytes, owner: str) -> Checkpoint | None:
    """The inverse of :func:`packed`; None, with a warning, if the content is damaged or another cell's."""
    try:
        tensors = {name: value.clone() for name, value in load(content).items()}
        # the header, whose length comes first, holds the facts
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        facts = json.loads(header["progress"])
        if header["sha256"] != _digest(owner, facts, tensors):
            raise ValueError("its content is not what this cell saved")
        return Checkpoint(tensors=tensors, **{name: facts[name] for name in FACTS})
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        warnings.warn(f"the checkpoint cannot be used ({unread(error)}); the cell begins again", stacklevel=2)
        return None


def _digest(owner: str, facts: Mapping[str, Any], tensors: Tensors) -> str:
    """SHA-256 of the cell's id, the facts and every tensor's name, dtype, shape and values."""
    digest = hashlib.sha256(json.dumps([owner, facts]).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(bytes_of(value).data)
    return digest.hexdigest()


class Checkpoints:
    """The checkpoints of one cell in a worker: bytes, which the driver writes to a file and reads again.

    Args:
        content: where an earlier training of the cell stood; None: there was none.
        owner: the cell's id; another cell does not accept a checkpoint.
        every: seconds between checkpoints; default: :data:`CHECKPOINT_SECONDS`.
    """

    def __init__(self, content: bytes | None = None, owner: str = "", every: float | None = None) -> None:
        self.content, self.owner, self.every = content, owner, every
        self._sent, self._last = content, time.monotonic()

    def __call__(self, capture: Callable[[], Checkpoint]) -> None:
        """Capture a checkpoint if enough time has passed since the last one."""
        if time.monotonic() - self._last >= (CHECKPOINT_SECONDS if self.every is None else self.every):
            self.save(capture())
            self._last = time.monotonic()

    def save(self, progress: Checkpoint) -> None:
        """Make ``progress`` the last checkpoint."""
        self.content = packed(progress, self.owner)

    def load(self) -> Checkpoint | None:
        """The last checkpoint; None if there is none, or it is damaged or another cell's."""
        return None if self.content is None else unpacked(self.content, self.owner)

    def unsent(self) -> bytes | None:
        """The last checkpoint if it was saved since the last call."""
        content, self._sent = (None if self.content is self._sent else self.content), self.content
        return content


def keep(path: Path, content: bytes) -> None:
    """Write a packed checkpoint, readable by the file's owner only."""
    with replaced(path, 0o600) as part:
        part.write_bytes(content)


def kept(path: Path) -> bytes | None:
    """The content that :func:`keep` wrote; None if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None
