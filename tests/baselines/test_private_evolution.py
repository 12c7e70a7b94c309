"""Private evolution's own mathematics; what every algorithm must keep is checked elsewhere."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from cells import centred_at
from exact import rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import seeded
from torch import Tensor

from baselines.private_evolution import PrivateEvolution, PrivateEvolutionParams
from fedsim.batch import consecutive
from fedsim.data.embeddings import PublicRows
from fedsim.methods import Norms, Seeds, Server, Task, clipped_statistics

DIM = 20
CLASSES = 3
PUBLIC = np.random.default_rng(0).standard_normal((60, DIM)).astype(np.float32)


def method(**params) -> PrivateEvolution:
    task = Task(DIM, CLASSES, 2, public=PublicRows(PUBLIC))
    return PrivateEvolution(
        PrivateEvolutionParams(**params),
        task,
    )


def server_of(algorithm: PrivateEvolution) -> Server:
    """The server with coordinates of rows about the origin in which all directions are alike."""
    server = algorithm.initial_server(Seeds(0))
    server.tensors |= centred_at(torch.zeros(algorithm.dim))
    algorithm.begin(server)
    return server


def random_rows(count: int, seed: int) -> tuple[Tensor, Tensor]:
    stream = seeded(seed)
    x = torch.randn(count, DIM, generator=stream)
    return x, torch.randint(CLASSES, (count,), generator=stream)


def histogram(
    algorithm: PrivateEvolution,
    x: Tensor,
    y: Tensor,
    layout=None,
) -> Tensor:
    """The sum of all votes by class."""
    products = algorithm.vote_products(
        rows_of(x, y),
        server_of(algorithm).tensors,
    )
    sums, _ = clipped_statistics(products, Norms(1.0), layout)
    return sums["votes"]


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), votes=st.integers(1, 90))
def test_one_row_adds_votes_of_norm_at_most_one(
    seed: int,
    votes: int,
) -> None:
    algorithm = method(candidates=30, votes=votes)
    x, y = random_rows(9, seed)
    change = histogram(algorithm, x, y) - histogram(algorithm, x[:8], y[:8])
    assert change.norm() <= 1 + 1e-6


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), votes=st.integers(1, 90))
def test_one_group_adds_votes_of_norm_at_most_one(
    seed: int,
    votes: int,
) -> None:
    algorithm = method(candidates=30, votes=votes)
    x, y = random_rows(9, seed)
    groups = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 3])
    whole = histogram(algorithm, x, y, consecutive(groups, x))
    less = histogram(
        algorithm,
        x[:6],
        y[:6],
        consecutive(groups[:6], x),
    )
    assert (whole - less).norm() <= 1 + 1e-6


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("project", [0, 7])
@pytest.mark.parametrize("name", ["votes", "bins"])
def test_what_a_row_adds_does_not_depend_on_other_rows(
    threads: int, project: int, name: str
) -> None:
    algorithm = method(candidates=200, votes=40, project=project)
    x, y = random_rows(130, threads)
    # Public rows are as near to one candidate as to its copies.
    x[:40] = torch.from_numpy(PUBLIC[:40])
    server = server_of(algorithm)
    _, spread, votes = map(
        algorithm.projected,
        algorithm.statistics(),
    )
    statistic = {"bins": spread, "votes": votes}[name]
    broadcast = algorithm.broadcast(server) | server.tensors

    def added_by(part: slice) -> Tensor:
        return statistic.products(rows_of(x[part], y[part]), broadcast)[name].right

    together = added_by(slice(None))
    single_rows = [slice(n, n + 1) for n in range(130)]
    for part in (*single_rows, slice(0, 129), slice(1, 130), slice(50, 67)):
        assert torch.equal(added_by(part), together[part])


def test_equal_candidates_are_one() -> None:
    algorithm = method(candidates=200, votes=40)
    server = server_of(algorithm)
    x, _ = random_rows(50, 0)
    rows = rows_of(x, torch.zeros(50, dtype=torch.long))
    votes = algorithm.vote_products(rows, algorithm.broadcast(server))["votes"].right
    candidates = server.tensors["candidates"][0]
    different = 40 * 60 / 200
    for row in votes:
        chosen = candidates[row > 0]
        assert len(chosen) == different
        assert len(torch.unique(chosen, dim=0)) == different
        assert torch.all(row[row > 0] == different**-0.5)


def test_a_row_votes_for_the_nearest_candidates_of_its_label() -> None:
    algorithm = method(candidates=30, votes=1)
    near = server_of(algorithm).tensors["candidates"][0, [3, 11]]
    votes = histogram(algorithm, near, torch.tensor([0, 2]))
    assert votes.nonzero().tolist() == [[0, 3], [2, 11]]


VOTES = torch.zeros(CLASSES, 30)
VOTES[0, 4] = 50.0
VOTES[0, 5] = 1.0
VOTES[1, 7] = 50.0
"""Votes with a standard deviation of 1, so that the single vote is noise."""


def test_candidates_with_votes_have_the_offspring() -> None:
    algorithm = method(candidates=30, rounds=2, variation=0.0)
    server = server_of(algorithm)
    before = server.tensors["candidates"].clone()
    algorithm.receive_votes(
        server,
        {"votes": VOTES},
        {"votes": 1.0},
    )
    candidates = server.tensors["candidates"]
    assert server.tensors["weights"][0, 4] == 1
    torch.testing.assert_close(
        candidates[0],
        before[0, 4].expand(30, -1),
    )
    torch.testing.assert_close(
        candidates[1],
        before[1, 7].expand(30, -1),
    )


def test_after_the_last_round_the_server_keeps_no_fresh_candidates() -> None:
    algorithm = method(candidates=30, rounds=1)
    server = server_of(algorithm)
    algorithm.receive_votes(
        server,
        {"votes": VOTES},
        {"votes": 1.0},
    )
    assert not {"fresh", "round"} & server.tensors.keys()


@pytest.mark.parametrize(("classes", "candidates"), [(11, 800), (1000, 174), (10**6, 1)])
def test_candidates_of_all_classes_fit_in_memory(classes: int, candidates: int) -> None:
    assert (
        PrivateEvolution(PrivateEvolutionParams(), Task(384, classes, 2)).candidates == candidates
    )
