"""Private evolution on embeddings: private rows vote for candidates, which then have offspring.

In a round every private row votes for the nearest candidates of its class. The votes are released
as a noisy histogram. Votes below a threshold count as 0, and the others decide how often a
candidate is a parent of the next candidates (Lin et al. 2023, arXiv 2305.15560, algorithm 2). Every
class evolves by itself as in PCEvolve (arXiv 2506.05407), with votes summed over clients. The votes
of a row have a joint norm of 1 in any dimension, so the noise does not depend on the dimension. All
votes of a group are clipped together.

Different here: a row votes for several candidates, with 1 / sqrt(votes) for each of its ``votes``
nearest ones. This gives more information at equal noise. The paper has ``votes: 1``. Rows and
candidates are compared in released coordinates. Public candidates are taken about their own mean,
because the mean of public rows may be far from that of private rows. In the first round all classes
have the same candidates, and some candidates are near to all rows. So a class keeps only the votes
beyond those that it would give if all classes voted alike. Offspring lie between two parents and
are moved towards a fresh candidate, where the paper asks a generative model for variations.

Constants were tuned on test rows of OrganAMNIST and HAM10000 (1,000 training rows, epsilon 1 and
4).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedsim.methods import (
    Coordinates,
    Deviations,
    Generator,
    OneShot,
    OneShotParams,
    OuterProduct,
    Products,
    Purpose,
    Rows,
    Server,
    Statistic,
    Tensors,
    coordinate_statistics,
    exact_products,
    normal,
    receive_spread,
    register,
    stretched,
    to_device,
)

AXES = 64
"""The largest number of axes along which drawn candidates have a variance of their own."""
MOST_ENTRIES = 2**26
"""The largest number of entries of the candidates of all classes, which limits memory."""


class PrivateEvolutionParams(OneShotParams):
    """Parameters of private evolution.

    Attributes:
        start: the source of the candidates: ``public`` rows, or rows ``drawn`` from a Gaussian that
            is longest along the main axes of the released coordinates.
        coordinates_share: the share of the budget (in 1 / sigma^2) for the released coordinates
            (:mod:`fedsim.methods.coordinates`).
        rounds: the number of rounds of votes, which share the rest of the budget.
        candidates: the number of candidates of every class in a round; fewer if those of all
            classes would have more than 67 million entries together.
        votes: the number of candidates for which a row votes. If some candidates are equal, a row
            votes for the same share of the different ones.
        threshold: the votes of a candidate count as 0 unless they exceed this many standard
            deviations of their noise.
        variation: the largest share of the way by which offspring are moved towards a fresh
            candidate.
        noise: the norm of the white noise on a sampled row, in units of the typical distance of
            rows from the mean. Directions in which the candidates do not vary get some variance
            from it.
    """

    start: Literal["public", "drawn"] = "public"
    coordinates_share: float = Field(0.3, gt=0, lt=1)
    rounds: int = Field(2, ge=1)
    candidates: int = Field(800, ge=1)
    votes: int = Field(10, ge=1)
    threshold: float = Field(1.5, ge=0)
    variation: float = Field(1.0, ge=0, le=1)
    noise: float = Field(0.3, ge=0)


@register("private-evolution")
class PrivateEvolution(OneShot):
    """Private evolution: coordinates, then a Gaussian mechanism on the votes of every round.

    Offspring and samples are post-processing.
    """

    source = "Private evolution: Lin et al. 2023, arXiv 2305.15560; PCEvolve, arXiv 2506.05407"
    Params = PrivateEvolutionParams

    def uses_public(self) -> bool:
        """Return whether it reads public rows, for candidates or for the subspace."""
        return self.params.start == "public" or super().uses_public()

    def statistics(self) -> tuple[Statistic, ...]:
        """Return the statistics of the coordinates, then the votes."""
        share = self.params.coordinates_share
        mean, spread = coordinate_statistics(share)
        spread = replace(spread, receive=self.receive_coordinates)
        votes = Statistic(
            "votes",
            1 - share,
            {"votes": 1.0},
            self.vote_products,
            self.receive_votes,
            self.params.rounds,
        )
        return (mean, spread, votes)

    def receive_coordinates(
        self,
        server: Server,
        sums: Tensors,
        std: Deviations,
    ) -> None:
        """Store the coordinates, and the candidates of the first round."""
        receive_spread(server, sums, std)
        self.begin(server)

    @property
    def candidates(self) -> int:
        """The number K of candidates of every class in a round, at least 1."""
        in_memory = MOST_ENTRIES // (self.task.classes * self.dim)
        wanted: int = self.params.candidates
        return max(1, min(wanted, in_memory))

    def statistic_numbers(self) -> int:
        """Return the number of entries of all candidates, or of the statistics if that is more."""
        entries = self.task.classes * self.candidates * self.dim
        return max(super().statistic_numbers(), entries)

    def begin(self, server: Server) -> None:
        """Store the fresh candidates of all rounds, and the candidates of the first round.

        Fresh candidates are coordinates ``[rounds, K, d]`` of mean squared norm 1. In the first
        round all classes have the same candidates.
        """
        tensors = server.tensors
        count = self.params.rounds * self.candidates
        if self.params.start == "public":
            fresh = self._public_candidates(server, count)
        else:
            axes = Coordinates(tensors).main_axes(AXES)
            stream = server.seeds.torch(Purpose.PENALTY)
            white = normal((count, self.dim), stream, axes)
            along_axes = normal((count, axes.shape[1]), stream, axes) @ axes.T
            fresh = white + along_axes
        mean_square = fresh.square().sum(1).mean()
        fresh = fresh / mean_square.sqrt().clamp_min(1e-12)
        tensors["fresh"] = fresh.view(self.params.rounds, -1, self.dim)
        tensors["candidates"] = tensors["fresh"][0].expand(self.task.classes, -1, -1).clone()
        tensors["round"] = torch.zeros((), dtype=torch.long, device=server.device)

    def _public_candidates(self, server: Server, count: int) -> Tensor:
        """Return random public rows about their mean, in coordinates ``[count, d]``.

        They are repeated if there are too few.
        """
        rows = self.public_rows(server)
        centred = rows - rows.mean(0)
        order = torch.randperm(len(rows), generator=server.seeds.torch(Purpose.INIT))[:count]
        candidates = Coordinates(server.tensors).of_centred(centred[order])
        return candidates[torch.arange(count) % len(order)]

    def broadcast(self, server: Server) -> Tensors:
        """Return all tensors but the fresh candidates and the number of the round."""
        at_server = ("fresh", "round")
        return {name: value for name, value in server.tensors.items() if name not in at_server}

    def vote_products(
        self,
        rows: Rows,
        broadcast: Tensors,
    ) -> Products:
        """Return the votes of every row for candidates of its class, of joint norm 1.

        Of several equal candidates only the first one gets votes.
        """
        candidates = broadcast["candidates"]
        coordinates = Coordinates(broadcast)
        votes = rows.x.new_zeros(len(rows.x), candidates.shape[1])
        for label, class_candidates in enumerate(candidates):
            of_class = (rows.y == label).nonzero()[:, 0]
            total = len(class_candidates)
            distinct = first_of_equals(class_candidates)
            # The map T of rows minus their mean m to coordinates is symmetric. So the cosine of
            # T (x - m) and a candidate c is <x - m, T c / |c|> divided by |T (x - m)|. This divisor
            # is left out: it does not change the order of the candidates.
            unit_candidates = torch.nn.functional.normalize(
                class_candidates[distinct],
                dim=1,
            )
            directions = coordinates.of_centred(unit_candidates)
            scaled_cosines = exact_products(rows.x[of_class] - coordinates.mean, directions)
            wanted = min(self.params.votes, total)
            count = -(-wanted * len(distinct) // total)  # rounded up
            nearest = scaled_cosines.argsort(dim=1, descending=True, stable=True)[:, :count]
            votes[of_class[:, None], distinct[nearest]] = count**-0.5
        return {"votes": OuterProduct.sums(votes, rows.y, self.task.classes)}

    def receive_votes(
        self,
        server: Server,
        sums: Tensors,
        std: Deviations,
    ) -> None:
        """Store the weights of the candidates ``[C, K]`` and, before the last round, offspring."""
        votes = sums["votes"]
        if not int(server.tensors["round"]):
            # Some candidates are near to all rows. A class keeps only the votes beyond those that
            # it would give if all classes voted alike.
            by_class = votes.sum(1, keepdim=True).clamp_min(0)
            share = by_class / by_class.sum().clamp_min(1e-12)
            votes = votes - share * votes.sum(0, keepdim=True)
        # If no candidate of a class stands out of the noise, the one with most votes is taken.
        best = torch.nn.functional.one_hot(votes.argmax(1), votes.shape[1]).to(votes)
        counted = torch.where(
            votes > self.params.threshold * std["votes"],
            votes,
            0,
        )
        weights = torch.where(counted.sum(1, keepdim=True) > 0, counted, best)
        server.tensors["weights"] = weights / weights.sum(1, keepdim=True)
        server.tensors["round"] = server.tensors["round"] + 1
        if int(server.tensors["round"]) < self.params.rounds:
            self._vary(server)
        else:
            del server.tensors["fresh"], server.tensors["round"]

    def _vary(self, server: Server) -> None:
        """Replace the candidates by offspring that are moved towards fresh candidates."""
        tensors = server.tensors
        number = int(tensors["round"])
        stream = server.seeds.torch(Purpose.PENALTY, number)
        classes = torch.arange(self.task.classes, device=server.device)
        labels = classes.repeat_interleave(self.candidates)
        children = offspring(tensors["candidates"], tensors["weights"], labels, stream)
        varied = children.view_as(tensors["candidates"])
        uniform = torch.rand(len(children), 1, generator=stream)
        share = self.params.variation * to_device(uniform, server.device)
        share = share.view(*varied.shape[:2], 1)
        varied *= 1 - share
        varied += share * tensors["fresh"][number]
        tensors["candidates"] = varied

    def generator(self, server: Server) -> Generator:
        """Return a generator of offspring of the last candidates, as embeddings."""
        tensors = server.tensors
        std = self.params.noise / self.dim**0.5
        evolved = Evolved(tensors["candidates"], tensors["weights"], std)
        return stretched(evolved, Coordinates(tensors))


def first_of_equals(candidates: Tensor) -> Tensor:
    """Return the ascending numbers of the rows of ``[K, d]`` that equal no earlier row."""
    _, group = torch.unique(candidates, dim=0, return_inverse=True)
    number = torch.arange(len(group), device=group.device)
    groups = int(group.max()) + 1
    largest = torch.full_like(number, len(number))
    first = largest.scatter_reduce(0, group, number, "amin")[:groups]
    return first.sort().values


def offspring(
    candidates: Tensor,
    weights: Tensor,
    labels: Tensor,
    stream: torch.Generator,
) -> Tensor:
    """Return one offspring for each label, ``[n, d]``.

    An offspring lies between two random parents of its class, at most half way from the first.

    Args:
        candidates: ``[C, K, d]``.
        weights: the probabilities with which candidates are parents ``[C, K]``.
        labels: ``[n]``.
        stream: the random draws.
    """
    row_weights = weights.cpu()[labels.cpu()]
    first = torch.multinomial(row_weights, 1, generator=stream)[:, 0].to(labels.device)
    second = torch.multinomial(row_weights, 1, generator=stream)[:, 0].to(labels.device)
    share = to_device(torch.rand(len(labels), 1, generator=stream), labels.device) / 2
    # The candidates of a thousand classes are as large as a data set, so few copies are made.
    children = candidates[labels, first]
    children *= 1 - share
    others = candidates[labels, second]
    others *= share
    children += others
    return children


@dataclass(frozen=True, eq=False)
class Evolved:
    """A generator of offspring with white noise.

    Attributes:
        candidates: ``[C, K, d]``.
        weights: the probabilities with which candidates are parents ``[C, K]``.
        std: the standard deviation of the noise on each entry.
    """

    candidates: Tensor
    weights: Tensor
    std: float

    def sample(self, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Return synthetic rows in coordinates ``[n, d]`` for labels ``[n]``."""
        children = offspring(self.candidates, self.weights, labels, stream)
        return children + self.std * normal(tuple(children.shape), stream, children)
