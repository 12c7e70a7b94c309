"""The server draws the noise once more and subtracts it."""

from collections.abc import Mapping

from broken.tiny import Tiny

from fedsim.methods.messages import Round, Server, Tensors
from fedsim.privacy.noise import gaussian
from fedsim.seeds import Purpose


class TakesTheNoiseOff(Tiny):
    trusts = ("aggregate",)

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Mapping[str, float]:
        assert server.plan is not None
        shapes = {name: tuple(value.shape) for name, value in total.items()}
        noise = gaussian(shapes, server.plan.noise_std(round_.release.name), server.seeds.keystream(Purpose.NOISE, round_.stream)).parts
        return super().server_step(server, round_, {name: value - noise[name] for name, value in total.items()})
