"""A diagnostic holds a function, which no actor can send."""

from dataclasses import replace

from broken.tiny import Tiny

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Tensors
from fedsim.privacy.plan import Release


class Told(float):
    """A number that knows how it is told."""

    def __init__(self, value: float) -> None:
        self.text = lambda: f"{value:g}"


class UnserialisableMessage(Tiny):
    def client_round(self, clients: Clients, round_: int, release: Release, broadcast: Tensors) -> Message:
        message = super().client_round(clients, round_, release, broadcast)
        return replace(message, diagnostics={**message.diagnostics, "clients": [Told(len(clients.members))]})
