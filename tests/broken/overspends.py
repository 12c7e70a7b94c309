"""Two noisy steps a round, where the plan pays for one; the ledger is told of one."""

from broken.tiny import Spelled

from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Tensors
from fedsim.privacy.plan import Release


class Overspends(Spelled):
    trusts = ("silo",)

    def client_round(self, clients: Clients, round_: int, release: Release, broadcast: Tensors) -> Message:
        super().client_round(clients, self.params.rounds + round_, release, broadcast)
        return super().client_round(clients, round_, release, broadcast)
