"""Scores from -1 to 1: a row that lowers one candidate and raises another moves the choice by twice what is paid for."""

from dataclasses import replace

from baselines.dppl_public import DPPLPublic
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Message, Round, Tensors
from fedsim.methods.one_shot import Choice, Rows, Statistic
from fedsim.methods.phase import Phase
from fedsim.models.layers import one_hot


class ScoresOfBothSigns(DPPLPublic):
    units = ("example",)

    def phase(self, released: Statistic | Choice, *, main: bool = False) -> Phase:
        def score(clients: Clients, round_: Round, received: Tensors) -> Message:
            rows = Rows.of(clients)
            total = one_hot(rows.y, self.task.classes).double().T @ (2 * self.scores(rows, received) - 1)
            return clients.send(clients.add_noise(round_.release, round_.stream, {"scores": total}).sent)

        phase = super().phase(released, main=main)
        return replace(phase, at_clients=score) if isinstance(released, Choice) else phase
