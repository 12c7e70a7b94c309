"""A diagnostic holds a function, which no actor can send."""

from dataclasses import replace

from broken.tiny import Tiny

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Tensors


class Told(float):
    """A number that knows how it is told."""

    def __init__(self, value: float) -> None:
        self.text = lambda: f"{value:g}"


class UnserialisableMessage(Tiny):
    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        message = super().client_round(clients, round_, broadcast)
        return replace(message, diagnostics={**message.diagnostics, "clients": [Told(len(clients.members))]})
