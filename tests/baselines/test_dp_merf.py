"""The mean embeddings' own mathematics."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from released import centred_at

from baselines.dp_merf import DPMERF, EMBEDDING_WEIGHTS, DPMERFParams
from fedsim.methods import Norms, Rows, Seeds, Server, Task, clipped_statistics, rounded, unit_weights

DIM, CLASSES = 8, 3


def small(**params: int) -> DPMERF:
    return DPMERF(DPMERFParams.model_validate({"frequencies": 200, "latent": 4, **params}), Task(DIM, CLASSES, 4))


def planted(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes apart along an axis each, wide along the last axis."""
    stream = torch.Generator().manual_seed(0)
    y = torch.arange(rows) % CLASSES
    x = 0.05 * torch.randn(rows, DIM, generator=stream)
    x[:, -1] += 0.3 * torch.randn(rows, generator=stream)
    x[torch.arange(rows), y] += 0.5
    return x, y


def without_noise(algorithm: DPMERF, x: torch.Tensor, y: torch.Tensor) -> Server:
    server = algorithm.initial_server(Seeds(0))
    for statistic in algorithm.statistics():
        weights = unit_weights(statistic.weights)
        for _ in range(statistic.steps):
            products = statistic.products(Rows(x, y, torch.zeros_like(y)), algorithm.broadcast(server))
            sums, _ = clipped_statistics(products, Norms(1.0, weights=weights))
            statistic.receive(server, {name: value / weights[name] for name, value in rounded(sums).items()}, dict.fromkeys(weights, 0.0))
    return server


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), scale=st.floats(0, 100))
def test_a_row_adds_exactly_one_to_the_embedding(seed: int, scale: float) -> None:
    algorithm, stream = small(frequencies=20), torch.Generator().manual_seed(seed)
    x, y = scale * torch.randn(10, DIM, generator=stream), torch.randint(CLASSES, (10,), generator=stream)
    told = algorithm.initial_server(Seeds(seed)).tensors | centred_at(torch.randn(DIM, generator=stream))
    products = algorithm.embedding_products(Rows(x, y, torch.zeros_like(y)), told)
    features = products["features"]
    assert torch.allclose(features.left.norm(dim=1) * features.right.norm(dim=1), torch.ones(10), atol=1e-5)
    _, norms = clipped_statistics(products, Norms(1.0, weights=unit_weights(EMBEDDING_WEIGHTS)))
    assert torch.allclose(norms, torch.ones(10), atol=1e-5)


def test_the_generator_moves_towards_a_planted_distribution() -> None:
    x, y = planted(3000)
    distances = []
    for steps in (1, 300):
        algorithm = small(generator_steps=steps)
        made = algorithm.generator(without_noise(algorithm, x, y)).sample(y, torch.Generator().manual_seed(1))
        means = torch.stack([made[y == label].mean(0) - x[y == label].mean(0) for label in range(CLASSES)])
        distances.append(float(means.norm(dim=1).max()))
    assert distances[1] < 0.15 < 0.4 < distances[0]
    assert made[:, -1].std() > 2 * made[:, -2].std()
