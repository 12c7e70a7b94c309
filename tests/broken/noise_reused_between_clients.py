"""All clients draw their noise from the stream of client 0."""

from dataclasses import replace

from broken.tiny import Spelled

from fedsim.methods.clients import Clients, Noised
from fedsim.methods.messages import Tensors
from fedsim.privacy.plan import Release


class NoiseReusedBetweenClients(Spelled):
    trusts = ("silo",)

    def noised(self, clients: Clients, release: Release, round_: int, sums: Tensors) -> Noised:
        noised = replace(clients, members=(0,) * len(clients.members)).add_noise(release, round_, sums)
        clients.ran[-1] = replace(clients.ran[-1], members=clients.members)
        return noised
