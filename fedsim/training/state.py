"""The state of a training in checkpoints and saved generators: tensors by name, with the owner's
name as prefix.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from safetensors.torch import load, save
from torch import Tensor

from fedsim.device import CPU, moved
from fedsim.files import replaced
from fedsim.methods.messages import Server, Tensors
from fedsim.methods.parameters import load_parameters


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training from which it continues bit for bit; with the root of secret noise,
    if noise is secret.
    """

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
    return {
        name.removeprefix(f"{prefix}."): value
        for name, value in tensors.items()
        if name.startswith(f"{prefix}.")
    }


def copied(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copies on the CPU, which share no memory with the tensors."""
    there = moved(tensors, CPU)
    return {
        name: value.detach().clone() if there[name] is value else there[name]
        for name, value in tensors.items()
    }


def load_server(server: Server, tensors: Tensors) -> None:
    """Load a saved server state."""
    load_parameters(server.model, tensors, "model.")
    server.tensors = moved(copied(below("tensors", tensors)), server.device)


def released_state(server: Server) -> Tensors:
    """The state from which a generator is made: the server's state and the released codes, all of
    it private.

    Without the optimiser's state, and without parameters that have a mean over iterates.
    """
    kept = {name: value for name, value in server.tensors.items() if not name.startswith("adam.")}
    parameters = {
        name: p
        for name, p in server.model.named_parameters()
        if p.numel() and f"average.{name}" not in kept
    }
    own = nested("model", copied(parameters)) | nested("tensors", copied(kept))
    return nested("server", own) | nested("codes", copied(server.codes))


DIGEST_BYTES = 32
"""Bytes of the hash with which a packed checkpoint begins."""
CHECKPOINT_SECONDS = 30.0
"""Seconds between checkpoints."""


class Checkpoints:
    """The checkpoints of one cell in a worker: bytes, which the driver writes to a file and reads
    again.

    Args:
        content: where an earlier training of the cell stood; None: there was none.
        owner: the cell's id; another cell does not accept a checkpoint.
        every: seconds between checkpoints; default: :data:`CHECKPOINT_SECONDS`.
    """

    def __init__(
        self, content: bytes | None = None, owner: str = "", every: float | None = None
    ) -> None:
        self.content = content
        self.owner = owner
        self.every = every
        self._sent = content
        self._last = time.monotonic()

    def __call__(self, capture: Callable[[], Checkpoint]) -> None:
        """Capture a checkpoint if enough time has passed since the last one."""
        if time.monotonic() - self._last >= (
            CHECKPOINT_SECONDS if self.every is None else self.every
        ):
            self.save(capture())
            self._last = time.monotonic()

    def save(self, progress: Checkpoint) -> None:
        """Make ``progress`` the last checkpoint; private client state is in its bytes, and the root
        of secret noise.
        """
        facts = {name: value for name, value in vars(progress).items() if name != "tensors"}
        tensors = {name: value.contiguous() for name, value in progress.tensors.items()}
        body = save(tensors, {"progress": json.dumps(facts)})
        self.content = self._digest(body) + body

    def load(self) -> Checkpoint | None:
        """The last checkpoint; None if there is none, and, with a warning, if it is damaged or
        another cell's.
        """
        if self.content is None:
            return None
        body = self.content[DIGEST_BYTES:]
        if self._digest(body) != self.content[:DIGEST_BYTES]:
            warnings.warn(
                "the checkpoint is not what this cell saved; the cell begins again", stacklevel=2
            )
            return None
        return Checkpoint(
            tensors={name: value.clone() for name, value in load(body).items()},
            **_facts(io.BytesIO(body)),
        )

    def _digest(self, body: bytes) -> bytes:
        return hashlib.sha256(json.dumps(self.owner).encode() + body).digest()

    def unsent(self) -> bytes | None:
        """The last checkpoint if it was saved since the last call."""
        if self.content is self._sent:
            content = None
        else:
            content = self.content
        self._sent = self.content
        return content


def _facts(body: BinaryIO) -> dict[str, Any]:
    """All of a packed :class:`Checkpoint` but its tensors, from the start of the body."""
    # The header, whose length comes first, holds the facts.
    length = int.from_bytes(body.read(8), "little")
    facts: dict[str, Any] = json.loads(json.loads(body.read(length))["__metadata__"]["progress"])
    return facts


def may_hold_key(path: Path) -> bool:
    """Whether the root of secret noise may be in a checkpoint's file: not if it says that it has
    none.
    """
    try:
        with path.open("rb") as file:
            file.seek(DIGEST_BYTES)
            return _facts(file)["secret"] is not None
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError):
        return True


def keep(path: Path, content: bytes) -> None:
    """Write a packed checkpoint, readable by the file's owner only."""
    with replaced(path, 0o600) as part:
        part.write_bytes(content)
