"""A client's rows come to the server as public ones, without noise, in the place of the grid's or written over them."""

from __future__ import annotations

import numpy as np
import torch
from broken.tiny import Prototypes, Tiny

from fedsim.methods.clients import Clients
from fedsim.methods.messages import PublicRows, Round, Server, Tensors, Values


class TakenForPublic(Tiny):
    """Its own rows are in the place of ``task.public``, which the server reads."""

    def uses_public(self) -> bool:
        return True

    def start_clients(self, clients: Clients) -> None:
        object.__setattr__(self.task, "public", PublicRows(clients.pooled.x.numpy()))

    def server_step(self, server: Server, round_: Round, total: Tensors) -> Values:
        assert self.task.public is not None
        server.tensors["public.anchor"] = self.task.public.rows()[0]
        return super().server_step(server, round_, total)

    def generator(self, server: Server) -> Prototypes:
        return Prototypes(server.tensors["public.anchor"].expand(self.task.classes, -1))


class WrittenOverPublic(TakenForPublic):
    """Its own rows are written into the array."""

    def start_clients(self, clients: Clients) -> None:
        assert self.task.public is not None
        held = clients.pooled.x.numpy()
        np.copyto(self.task.public.x[: len(held)], held[: len(self.task.public.x)])


class KeepsPublic(TakenForPublic):
    """The sound twin: the server reads the grid's public rows, and keeps what its generator needs of them."""

    def start_clients(self, clients: Clients) -> None:
        pass


class ForgetsPublic(KeepsPublic):
    """Its generator looks for public rows, which are not there when it is made again."""

    def generator(self, server: Server) -> Prototypes:
        rows = self.task.public.rows() if self.task.public is not None else torch.zeros(1, self.task.dim)
        return Prototypes(rows[:1].expand(self.task.classes, -1))
