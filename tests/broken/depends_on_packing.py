"""A cohort sends the mean over its clients where the sum belongs."""

from dataclasses import replace

from broken.tiny import Tiny

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Tensors


class DependsOnPacking(Tiny):
    trusts = ("aggregate",)

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        message = super().client_round(clients, round_, broadcast)
        return replace(message, sums={name: value / len(clients.members) for name, value in message.sums.items()})
