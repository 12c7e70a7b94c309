"""Plug-ins that harm the process which runs them, after two rounds, which are rehearsed."""

import os
import signal
import sys
import threading
from pathlib import Path

import torch

import fedsim.training.checkpoint
from baselines.weight_noise_cvae import WeightNoiseCVAE, WeightNoiseCVAEParams

fedsim.training.checkpoint.CHECKPOINT_SECONDS = 0.0


class HostileParams(WeightNoiseCVAEParams):
    marker: str = ""


class Killed(WeightNoiseCVAE):
    """Its worker is killed in the third round, until that is marked."""

    Params = HostileParams

    def server_step(self, server, round_, total):
        print(f"round {round_.number} at the server")
        if round_.number == 2 and not Path(self.params.marker).exists():
            Path(self.params.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().server_step(server, round_, total)


class ClientKilled(WeightNoiseCVAE):
    """The worker of its last client is killed in the third round, until that is marked."""

    Params = HostileParams

    def client_round(self, clients, round_, broadcast):
        if round_.number == 2 and 3 in clients.members and not Path(self.params.marker).exists():
            Path(self.params.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().client_round(clients, round_, broadcast)


class Spoils(WeightNoiseCVAE):
    """Leaves another process behind than it found."""

    def server_step(self, server, round_, total):
        values = super().server_step(server, round_, total)
        if round_.number < 2:
            return values
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.nn.functional.softplus = None
        torch.Tensor.sum = lambda self: 0
        sys.path.clear()
        os.chdir("/")
        os.environ.clear()
        return values


class Floods(WeightNoiseCVAE):
    """Prints 12 MB in its third round."""

    def server_step(self, server, round_, total):
        print("x" * 12_000_000 * (round_.number > 1))
        return super().server_step(server, round_, total)


class Eats(WeightNoiseCVAE):
    """Takes memory without an end."""

    def server_step(self, server, round_, total):
        eaten = []
        while round_.number > 1:
            eaten.append(torch.ones(2**22))
        return super().server_step(server, round_, total)


class Hangs(WeightNoiseCVAE):
    """Never returns."""

    def server_step(self, server, round_, total):
        if round_.number > 1:
            threading.Event().wait()
        return super().server_step(server, round_, total)


class Visitor(WeightNoiseCVAE):
    """Does no harm, and comes last by its name."""
