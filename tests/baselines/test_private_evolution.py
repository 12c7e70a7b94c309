"""Private evolution's own mathematics; what every algorithm must keep is checked elsewhere."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from cells import centred_at
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.private_evolution import PrivateEvolution, PrivateEvolutionParams
from fedsim.batch import consecutive
from fedsim.data.embeddings import PublicRows
from fedsim.methods import Norms, Rows, Seeds, Server, Task, clipped_statistics

DIM = 20
CLASSES = 3


def public() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((60, DIM)).astype(np.float32))


def method(**params) -> PrivateEvolution:
    return PrivateEvolution(
        PrivateEvolutionParams(**params), Task(DIM, CLASSES, 2, public=PublicRows(public().numpy()))
    )


@pytest.fixture
def numbers_of_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def started(algorithm: PrivateEvolution) -> Server:
    """The server once coordinates are there: those of rows about the origin, all directions
    alike.
    """
    server = algorithm.initial_server(Seeds(0))
    server.tensors |= centred_at(torch.zeros(algorithm.dim))
    algorithm.begin(server)
    return server


def histogram(
    algorithm: PrivateEvolution,
    x: torch.Tensor,
    y: torch.Tensor,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    if groups is None:
        layout = None
    else:
        layout = consecutive(groups, x)
    return clipped_statistics(
        algorithm.vote_products(Rows(x, y, y), started(algorithm).tensors), Norms(1.0), layout
    )[0]["votes"]


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), votes=st.integers(1, 90))
def test_one_row_and_one_group_add_votes_of_norm_at_most_one(seed: int, votes: int) -> None:
    algorithm = method(candidates=30, votes=votes)
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(9, DIM, generator=stream)
    y = torch.randint(CLASSES, (9,), generator=stream)
    assert (histogram(algorithm, x, y) - histogram(algorithm, x[:8], y[:8])).norm() <= 1 + 1e-6
    groups = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 3])
    grouped = histogram(algorithm, x, y, groups) - histogram(algorithm, x[:6], y[:6], groups[:6])
    assert grouped.norm() <= 1 + 1e-6


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("project", [0, 7])
def test_what_a_row_adds_does_not_rest_on_which_rows_stand_beside_it(
    threads: int, project: int, numbers_of_threads: None
) -> None:
    torch.set_num_threads(threads)
    algorithm = method(candidates=200, votes=40, project=project)
    stream = torch.Generator().manual_seed(threads)
    x = torch.randn(130, DIM, generator=stream)
    y = torch.randint(CLASSES, (130,), generator=stream)
    x[:40] = public()[
        torch.randint(60, (40,), generator=stream)
    ]  # as near to one candidate as to its copies
    server, (_, spread, votes) = (
        started(algorithm),
        map(algorithm.projected, algorithm.statistics()),
    )
    for statistic, name in ((votes, "votes"), (spread, "bins")):
        together = statistic.products(Rows(x, y, y), algorithm.broadcast(server) | server.tensors)[
            name
        ].right
        for some in (
            *(slice(n, n + 1) for n in range(130)),
            slice(0, 129),
            slice(1, 130),
            slice(50, 67),
        ):
            alone = statistic.products(
                Rows(x[some], y[some], y[some]), algorithm.broadcast(server) | server.tensors
            )[name].right
            assert torch.equal(alone, together[some])


def test_equal_candidates_are_one() -> None:
    algorithm = method(candidates=200, votes=40)
    server = started(algorithm)
    x = torch.randn(50, DIM, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(50, dtype=torch.long)
    votes = algorithm.vote_products(Rows(x, y, y), algorithm.broadcast(server))["votes"].right
    candidates = server.tensors["candidates"][0]
    for row in votes:
        chosen = candidates[row > 0]
        assert len(torch.unique(chosen, dim=0)) == len(chosen) == 40 * 60 / 200
        assert torch.all(row[row > 0] == len(chosen) ** -0.5)


def test_a_row_votes_for_the_nearest_candidates_of_its_label() -> None:
    algorithm = method(candidates=30, votes=1)
    near = started(algorithm).tensors["candidates"][0, [3, 11]]
    votes = histogram(algorithm, near, torch.tensor([0, 2]))
    assert votes.nonzero().tolist() == [[0, 3], [2, 11]]


def test_candidates_with_votes_have_the_offspring_and_those_in_the_noise_none() -> None:
    algorithm = method(candidates=30, rounds=2, variation=0.0)
    server = started(algorithm)
    before = server.tensors["candidates"].clone()
    votes = torch.zeros(CLASSES, 30)
    votes[0, 4] = 50.0
    votes[0, 5] = 1.0
    votes[1, 7] = 50.0
    algorithm.receive_votes(server, {"votes": votes}, {"votes": 1.0})
    assert server.tensors["weights"][0, 4] == 1
    torch.testing.assert_close(server.tensors["candidates"][0], before[0, 4].expand(30, -1))
    torch.testing.assert_close(server.tensors["candidates"][1], before[1, 7].expand(30, -1))
    algorithm.receive_votes(server, {"votes": votes}, {"votes": 1.0})
    assert not {"fresh", "round"} & server.tensors.keys()
