"""Two noisy steps a round, where the plan pays for one; the ledger is told of one."""

from dataclasses import replace

from broken.tiny import Spelled

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Tensors


class Overspends(Spelled):
    trusts = ("silo",)

    def client_round(self, clients: Clients, round_: Round, broadcast: Tensors) -> Message:
        super().client_round(replace(clients, steps=None), replace(round_, stream=self.params.rounds + round_.stream), broadcast)
        return super().client_round(clients, round_, broadcast)
