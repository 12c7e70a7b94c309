"""The state of a training in checkpoints and saved generators: tensors by name, with the owner's name as prefix."""

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


def described(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Dtype and shape of every tensor, in words: ``float32 [10, 64]``."""
    return {name: f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}" for name, value in sorted(tensors.items())}


def check_alike(actual: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Check that names, shapes and dtypes, as :func:`described` returns them, are exactly the expected ones."""
    for name in sorted({*actual, *expected}):
        if name not in actual:
            raise ValueError(f"tensor '{name}' ({expected[name]}) is missing")
        if name not in expected:
            raise ValueError(f"there is a tensor '{name}' ({actual[name]}) too many")
        if actual[name] != expected[name]:
            raise ValueError(f"tensor '{name}' is {actual[name]}, not {expected[name]}")


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


def capture(server: Server, pool: Pool, ledger: Ledger, round_: int, sizes: tuple[int, int], secret: int | None) -> Checkpoint:
    """The progress after ``round_`` rounds: ``sizes``, the bytes sent and received, and the root of the secret streams, too."""
    parameters = {name: p for name, p in server.model.named_parameters() if p.numel()}
    own = nested("model", copied(parameters)) | nested("tensors", copied(server.tensors))
    return Checkpoint(round_, nested("server", own) | nested("clients", pool.state()), ledger.to_json(), *sizes, secret)
