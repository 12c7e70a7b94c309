"""All clients draw their noise from the stream of client 0."""

from dataclasses import replace

from broken.tiny import Spelled

from fedsim.methods.clients import Clients, Noised
from fedsim.methods.messages import Round, Tensors


class NoiseReusedBetweenClients(Spelled):
    trusts = ("silo",)

    def noised(self, clients: Clients, round_: Round, sums: Tensors) -> Noised:
        noised = replace(clients, members=(0,) * len(clients.members)).add_noise(round_.release, round_.stream, sums)
        clients.ran.steps[-1:] = [replace(step, members=clients.members) for step in clients.ran.steps[-1:]]
        return noised
