"""A client that has no row cannot take part, and the training ends: which shows that it has none."""

from broken.tiny import Tiny

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Tensors
from fedsim.privacy.plan import Release


class RaisesWithoutRows(Tiny):
    def client_round(self, clients: Clients, round_: int, release: Release, broadcast: Tensors) -> Message:
        if any(len(x) == 0 for x in clients.x):
            raise ValueError("a client has no row")
        return super().client_round(clients, round_, release, broadcast)
