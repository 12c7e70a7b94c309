"""Algorithms with reused or missing noise, other samples than claimed, or unpaid steps."""

from dataclasses import replace

import torch
from broken.tiny import Spelled, Tiny, TinyParams
from pydantic import Field
from torch import Tensor

from fedsim.methods.clients import Clients, Noised
from fedsim.methods.messages import Message, Round, Server, Tensors
from fedsim.privacy.noise import gaussian
from fedsim.seeds import Purpose


class NoiseReusedBetweenRounds(Spelled):
    """Adds the noise of step 0 in every round."""

    trusts = ("silo",)

    def noised(self, clients: Clients, round_: Round, sums: Tensors) -> Noised:
        return replace(clients, steps=None).add_noise(round_.release, 0, sums)


class AsksForNoNoise(Spelled):
    """Sends its sums without a call of add_noise."""

    trusts = ("silo",)

    def noised(self, clients: Clients, round_: Round, sums: Tensors) -> Noised:
        return Noised(sums, {})


class TakesTheNoiseOff(Tiny):
    """Draws the harness's noise again at the server and subtracts it."""

    trusts = ("aggregate",)

    def received(
        self,
        server: Server,
        round_: Round,
        total: Tensors,
    ) -> Tensors:
        assert server.plan is not None
        shapes = {name: tuple(value.shape) for name, value in total.items()}
        std = server.plan.noise_std(round_.release.name)
        noise = gaussian(shapes, std, server.seeds.keystream(Purpose.NOISE, round_.stream)).parts
        return {name: value - noise[name] for name, value in total.items()}


class Overspends(Spelled):
    """Runs every round twice."""

    trusts = ("silo",)

    def client_round(
        self,
        clients: Clients,
        round_: Round,
        broadcast: Tensors,
    ) -> Message:
        again = replace(round_, stream=self.params.rounds + round_.stream)
        super().client_round(replace(clients, steps=None), again, broadcast)
        return super().client_round(clients, round_, broadcast)


class SamplingNotPoisson(Spelled):
    """Uses all rows in every step."""

    def rows(self, clients: Clients, round_: Round) -> list[Tensor]:
        return [torch.arange(len(x)) for x in clients.x]


class SampleReusedBetweenRounds(Spelled):
    """Uses the Poisson sample of step 0 in every round."""

    def rows(self, clients: Clients, round_: Round) -> list[Tensor]:
        return clients.poisson(0, round_.release.sample_rate)


class FewTakePart(TinyParams):
    client_rate: float = Field(0.2, gt=0, le=1)


class EveryoneTakesPart(Spelled):
    """Samples rows of all clients, though it claims to sample clients."""

    Params = FewTakePart
    units = ("client",)

    def rows(self, clients: Clients, round_: Round) -> list[Tensor]:
        return clients.poisson(round_.stream, self.params.sample_rate)


class StrengthParams(TinyParams):
    strength: float = 1.0


class Strength(Tiny):
    """Claims a sensitivity that a parameter divides."""

    Params = StrengthParams

    def sensitivity(self) -> float:
        return self.clip() / (1.0 + self.params.strength)  # type: ignore[no-any-return]
