"""Every row votes twice, past the clip that the votes of a row share."""

from dataclasses import replace

from baselines.private_evolution import PrivateEvolution
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Tensors
from fedsim.methods.one_shot import Rows, Statistic
from fedsim.methods.phase import Phase


class VotesCountedTwice(PrivateEvolution):
    units = ("example",)
    trusts = ("aggregate",)

    def phase(self, statistic: Statistic, *, main: bool = False) -> Phase:
        def count(clients: Clients, round_: Round, received: Tensors) -> Message:
            votes = self.vote_products(Rows.of(clients), received)["votes"]
            sums = {"votes": 2 * votes.left.double().T @ votes.right.double()}
            return clients.send(clients.add_noise(round_.release, round_.stream, sums).sent)

        phase = super().phase(statistic, main=main)
        return replace(phase, at_clients=count) if statistic.name == "votes" else phase
