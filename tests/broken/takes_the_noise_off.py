"""The server draws the noise once more and subtracts it: by the seed tree that it has, or by a guess of the cell's."""

from collections.abc import Mapping

from broken.tiny import Tiny

from fedsim.methods.messages import Round, Server, Tensors
from fedsim.privacy.noise import gaussian
from fedsim.seeds import Purpose, Seeds


class TakesTheNoiseOff(Tiny):
    trusts = ("aggregate",)

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        assert server.plan is not None
        shapes = {name: tuple(value.shape) for name, value in total.items()}
        std, stream = server.plan.noise_std(round_.release.name), self.seeds(server).keystream(Purpose.NOISE, round_.stream)
        noise = gaussian(shapes, std, stream).parts
        return super().server_step(server, round_, {name: value - noise[name] for name, value in total.items()})

    def seeds(self, server: Server) -> Seeds:
        return server.seeds


class GuessesTheSeed(TakesTheNoiseOff):
    def seeds(self, server: Server) -> Seeds:
        return Seeds(0)
