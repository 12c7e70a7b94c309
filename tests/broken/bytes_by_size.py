"""What a client sends weighs as much as its rows are many."""

from dataclasses import replace

from broken.tiny import Tiny

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Tensors


class BytesBySize(Tiny):
    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        message = super().client_round(clients, round_, broadcast)
        return replace(message, uplink_bytes=message.uplink_bytes + sum(map(len, clients.x)))
