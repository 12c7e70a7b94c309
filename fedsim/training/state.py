"""The state of a training, in checkpoints and saved generators.

The state is a mapping from names to tensors. The prefix of a name says to whom the tensor belongs,
such as ``server.model.`` or ``clients.state.``.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from safetensors.torch import load, save
from torch import Tensor

from fedsim.device import CPU, moved
from fedsim.files import replaced
from fedsim.methods.messages import Server, Tensors
from fedsim.methods.parameters import in_order, load_parameters


@dataclass(frozen=True)
class Checkpoint:
    """The state from which an interrupted training continues, bit for bit.

    It contains private client state, so only the user who runs the training may read it.

    Attributes:
        round: the number of rounds that have run.
        tensors: all state of the server and the clients, by name.
        ledger: the ledger, as JSON.
        uplink_bytes, downlink_bytes: bytes that all clients have sent and received.
        secret: the root of secret noise; None if noise is not secret.
    """

    round: int
    tensors: Tensors
    ledger: str
    uplink_bytes: int
    downlink_bytes: int
    secret: int | None = field(default=None, repr=False)

    def kept(self) -> Checkpoint:
        """Return a copy that stays as it is while the training goes on."""
        return replace(self, tensors=copied(self.tensors))


def nested(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors with ``prefix`` and a dot before their names."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def below(prefix: str, tensors: Tensors) -> Tensors:
    """Return the tensors whose names start with ``prefix`` and a dot, by the rest of the name.

    It is the inverse of :func:`nested`.
    """
    start = f"{prefix}."
    return {
        name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)
    }


def copied(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return copies on the CPU, which share no memory with the tensors."""
    copies = moved(tensors, CPU)
    for name, value in tensors.items():
        if copies[name] is value:  # It was on the CPU already, so the move has not copied it.
            copies[name] = value.detach().clone()
    return copies


def load_server(server: Server, tensors: Tensors) -> None:
    """Load a saved server state: parameters below ``model.``, other tensors below ``tensors.``.

    A tensor that is on the server's device, row-major and aligned already is not copied.
    """
    load_parameters(server.model, tensors, "model.")
    server.tensors = moved(in_order(below("tensors", tensors)), server.device)


def server_state(server: Server) -> Tensors:
    """Return the server's parameters and tensors on the CPU, as :func:`load_server` reads them.

    The result shares memory with the server, because a statistic may be as large as a data set. So
    use it before the next round changes the server.
    """
    parameters = {name: p.detach() for name, p in server.model.named_parameters() if p.numel()}
    return nested("model", moved(parameters, CPU)) | nested("tensors", moved(server.tensors, CPU))


def released_state(server: Server) -> Tensors:
    """Return the state from which a generator is made: the server's, and the released client codes.

    The optimiser's state is left out. If the state has the mean of a parameter over iterates, the
    parameter itself is left out. The state stays private: only the generator may be released.
    """
    tensors = {
        name: value for name, value in server.tensors.items() if not name.startswith("adam.")
    }
    parameters = {
        name: p
        for name, p in server.model.named_parameters()
        if p.numel() and f"average.{name}" not in tensors
    }
    of_server = nested("model", copied(parameters)) | nested("tensors", copied(tensors))
    return nested("server", of_server) | nested("codes", copied(server.codes))


DIGEST_BYTES = 32
"""Length in bytes of the SHA-256 hash with which a packed checkpoint begins."""
CHECKPOINT_SECONDS = 30.0
"""Seconds between checkpoints: a crash loses little, and saving takes a small share of the time."""


class Checkpoints:
    """The checkpoints of one cell in a worker.

    A checkpoint is packed into bytes, which the driver writes to a file and reads again.

    Args:
        content: the packed checkpoint from which the cell continues; None if there is none.
        owner: the id of the cell's training. A checkpoint of another training is not accepted.
        every: the seconds between checkpoints; None for :data:`CHECKPOINT_SECONDS`.
    """

    def __init__(
        self,
        content: bytes | None = None,
        owner: str = "",
        every: float | None = None,
    ) -> None:
        self.content = content
        self.owner = owner
        self.every = every
        self._is_new = False
        self._last = time.monotonic()

    def __call__(self, capture: Callable[[], Checkpoint], is_last: bool = False) -> None:
        """Save a checkpoint if enough time has passed since the last one.

        Args:
            capture: returns the present state of the training.
            is_last: whether this was the last round. Then nothing is saved: the outcome follows at
                once, and packing the state would take memory for nothing.
        """
        if is_last:
            return
        every = self.every
        if every is None:
            every = CHECKPOINT_SECONDS
        if time.monotonic() - self._last >= every:
            self.content = None  # frees the earlier checkpoint before the new one is packed
            # The captured state has no name here, so it is freed before the digest is made.
            self._keep(_packed(capture()))
            self._last = time.monotonic()

    def save(self, progress: Checkpoint) -> None:
        """Save a checkpoint at once.

        The packed bytes contain private client state, and the root of secret noise if there is any.
        """
        self._keep(_packed(progress))

    def _keep(self, body: bytes) -> None:
        self.content = self._digest(body) + body
        self._is_new = True

    def load(self) -> Checkpoint | None:
        """Return the last checkpoint; None if there is none.

        If its bytes are damaged or belong to another cell, warn and return None.
        """
        if self.content is None:
            return None
        body = self.content[DIGEST_BYTES:]
        if self._digest(body) != self.content[:DIGEST_BYTES]:
            warnings.warn(
                "the checkpoint is not what this cell saved; the cell begins again",
                stacklevel=2,
            )
            return None
        tensors = {name: value.clone() for name, value in load(body).items()}
        return Checkpoint(tensors=tensors, **_read_fields(io.BytesIO(body)))

    def _digest(self, body: bytes) -> bytes:
        digest = hashlib.sha256(json.dumps(self.owner).encode())
        digest.update(body)
        return digest.digest()

    def unsent(self) -> bytes | None:
        """Return the last checkpoint if it was saved since the last call, else None.

        The driver keeps it, and this object does not.
        """
        if not self._is_new:
            return None
        content = self.content
        self.content = None
        self._is_new = False
        return content


def _packed(progress: Checkpoint) -> bytes:
    """Pack a checkpoint in the safetensors format, without a digest."""
    fields = dict(vars(progress))
    del fields["tensors"]
    tensors = {}
    storages = set()
    for name, value in progress.tensors.items():
        tensor = value.contiguous()
        storage = tensor.untyped_storage().data_ptr()
        if storage in storages:
            tensor = tensor.clone()  # since safetensors refuses tensors that share memory
        storages.add(storage)
        tensors[name] = tensor
    return save(tensors, {"progress": json.dumps(fields)})


def _read_fields(body: BinaryIO) -> dict[str, Any]:
    """Return all fields of a packed :class:`Checkpoint` except its tensors.

    The fields are in the JSON header of the safetensors format. The first 8 bytes are its length.

    Args:
        body: a file, positioned at the packed checkpoint without its digest.
    """
    length = int.from_bytes(body.read(8), "little")
    header = json.loads(body.read(length))
    progress = header["__metadata__"]["progress"]
    fields: dict[str, Any] = json.loads(progress)
    return fields


def may_hold_key(path: Path) -> bool:
    """Return whether a checkpoint's file may contain the root of secret noise.

    It is False only if the file says that it contains none; a damaged file may contain one.
    """
    try:
        with path.open("rb") as file:
            file.seek(DIGEST_BYTES)
            return _read_fields(file)["secret"] is not None
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError):
        return True


def keep(path: Path, content: bytes) -> None:
    """Write a packed checkpoint to a file that only the current user may read."""
    with replaced(path, 0o600) as temporary:
        temporary.write_bytes(content)
