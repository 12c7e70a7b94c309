"""A cohort sends the mean over its clients where the sum belongs."""

from dataclasses import replace

from broken.tiny import Tiny

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Tensors
from fedsim.privacy.plan import Release


class DependsOnPacking(Tiny):
    trusts = ("aggregate",)

    def client_round(self, clients: Clients, round_: int, release: Release, broadcast: Tensors) -> Message:
        message = super().client_round(clients, round_, release, broadcast)
        return replace(message, sums={name: value / len(clients.members) for name, value in message.sums.items()})
