"""Rows are told by their difference to their client's first row: without that one they are all other rows."""

from dataclasses import replace

from broken.tiny import Tiny

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Tensors


class FirstRowIsTheAnchor(Tiny):
    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        anchored = replace(clients, x=tuple(x - x[:1] / 2 for x in clients.x))
        return super().client_round(anchored, round_, broadcast)
