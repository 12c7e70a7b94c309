"""What a client sends weighs as much as its rows are many."""

from dataclasses import replace

from broken.tiny import Tiny

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Tensors
from fedsim.privacy.plan import Release


class BytesBySize(Tiny):
    def client_round(self, clients: Clients, round_: int, release: Release, broadcast: Tensors) -> Message:
        message = super().client_round(clients, round_, release, broadcast)
        return replace(message, uplink_bytes=message.uplink_bytes + sum(map(len, clients.x)))
