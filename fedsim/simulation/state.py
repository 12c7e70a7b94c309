"""What a training's checkpoint and a saved generator hold: tensors under names that say whose they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedsim.device import CPU, moved
from fedsim.methods.messages import Pool, Server, Tensors
from fedsim.methods.parameters import load_parameters
from fedsim.privacy.ledger import Ledger


@dataclass(frozen=True)
class Checkpoint:
    """Where a training stands, enough to go on from there bit for bit; with the root of secret noise, if it is secret."""

    round: int
    tensors: Tensors
    ledger: str
    uplink_bytes: int
    secret: int | None = field(default=None, repr=False)


def nested(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors under names behind ``prefix`` and a dot."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def below(prefix: str, tensors: Tensors) -> Tensors:
    """What :func:`nested` put behind ``prefix``, under its own names."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def copied(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copies on the CPU, apart from what is trained on."""
    there = moved(tensors, CPU)
    return {name: value.detach().clone() if there[name] is value else there[name] for name, value in tensors.items()}


def load_server(server: Server, tensors: Tensors) -> None:
    """Take up a checkpoint's server state."""
    load_parameters(server.model, tensors, "model.")
    server.tensors = moved(copied(below("tensors", tensors)), server.device)


def released_state(server: Server) -> Tensors:
    """What a generator is made from: the server's state and the released codes, all of it private already.

    The optimiser's state, and parameters of which there is a mean over iterates, are left out.
    """
    kept = {name: value for name, value in server.tensors.items() if not name.startswith("adam.")}
    parameters = {name: p for name, p in server.model.named_parameters() if p.numel() and f"average.{name}" not in kept}
    own = nested("model", copied(parameters)) | nested("tensors", copied(kept))
    return nested("server", own) | nested("codes", copied(server.codes))


def capture(server: Server, pool: Pool, ledger: Ledger, round_: int, uplink_bytes: int) -> Checkpoint:
    """The progress after ``round_`` rounds."""
    parameters = {name: p for name, p in server.model.named_parameters() if p.numel()}
    own = nested("model", copied(parameters)) | nested("tensors", copied(server.tensors))
    return Checkpoint(round_, nested("server", own) | nested("clients", pool.state()), ledger.to_json(), uplink_bytes, server.seeds.secret)
