"""What a training's checkpoint and a saved generator hold: tensors under names that say whose they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from fedsim.device import CPU, moved
from fedsim.methods.messages import Pool, Server, Tensors
from fedsim.methods.parameters import code_names, load_parameters
from fedsim.privacy.ledger import Ledger


@dataclass(frozen=True)
class Checkpoint:
    """Where a training stands, enough to go on from there bit for bit; with the root of secret noise, if it is secret."""

    round: int
    tensors: Tensors
    ledger: str
    uplink_bytes: int
    downlink_bytes: int
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


def described(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Dtype and shape of every tensor, in words: ``float32 [10, 64]``."""
    return {name: f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}" for name, value in sorted(tensors.items())}


def check_alike(found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Names, shapes and dtypes, as :func:`described` tells them, are exactly the expected ones.

    Raises:
        ValueError: the first that is missing, too many or another.
    """
    for name in sorted({*found, *expected}):
        if name not in found:
            raise ValueError(f"tensor '{name}' ({expected[name]}) is missing")
        if name not in expected:
            raise ValueError(f"there is a tensor '{name}' ({found[name]}) too many")
        if found[name] != expected[name]:
            raise ValueError(f"tensor '{name}' is {found[name]}, not {expected[name]}")


def check_released(model: nn.Module, state: Tensors, clients: int, *, codes: bool) -> None:
    """A generator's state holds the model's parameters, each as it is or as its mean over iterates, and the codes that were released.

    Args:
        model: the server's; its parameters may be without memory.
        state: as :func:`released_state` makes it.
        clients: how many have a code.
        codes: whether codes were released.

    Raises:
        ValueError: a tensor is missing, too many, another or not finite.
    """
    shapes = dict(model.named_parameters())
    expected = {}
    for name, own in described({name: p for name, p in shapes.items() if p.numel()}).items():
        mean = f"server.tensors.average.{name}"
        expected[mean if mean in state else f"server.model.{name}"] = own
    dtypes = {name: str(shapes[name].dtype).removeprefix("torch.") for name in code_names(model)}
    expected |= {f"codes.{name}": f"{dtypes[name]} {[clients, *shapes[name].shape[1:]]}" for name in dtypes if codes}
    free = "server.tensors."
    check_alike({name: own for name, own in described(state).items() if name in expected or not name.startswith(free)}, expected)
    for name, value in state.items():
        if not value.isfinite().all():
            raise ValueError(f"tensor '{name}' holds numbers that are not finite")


def load_server(server: Server, tensors: Tensors) -> None:
    """Take up a saved server state."""
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


def capture(server: Server, pool: Pool, ledger: Ledger, round_: int, sizes: tuple[int, int], secret: int | None) -> Checkpoint:
    """The progress after ``round_`` rounds: ``sizes``, the bytes sent and received, and the root of the secret streams, too."""
    parameters = {name: p for name, p in server.model.named_parameters() if p.numel()}
    own = nested("model", copied(parameters)) | nested("tensors", copied(server.tensors))
    return Checkpoint(round_, nested("server", own) | nested("clients", pool.state()), ledger.to_json(), *sizes, secret)
