"""A client that has no row cannot take part, and the training ends: which shows that it has none."""

from broken.tiny import Tiny

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Tensors


class RaisesWithoutRows(Tiny):
    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        if any(len(x) == 0 for x in clients.x):
            raise ValueError("a client has no row")
        return super().client_round(clients, round_, broadcast)
