"""What a server stores of statistics that are summed exactly."""

import torch
from torch import Tensor

from fedsim.methods import (
    Norms,
    OneShot,
    Rows,
    Seeds,
    Server,
    Statistic,
    Tensors,
    clipped_statistics,
    rounded,
    unit_weights,
)


def rows_of(x: Tensor, y: Tensor) -> Rows:
    """Rows of one client."""
    return Rows(x, y, torch.zeros_like(y))


def exact_sums(
    statistic: Statistic,
    rows: Rows,
    broadcast: Tensors,
) -> Tensors:
    """The sums of a statistic without noise; no row may exceed the joint norm."""
    weights = unit_weights(statistic.weights)
    products = statistic.products(rows, broadcast)
    sums, norms = clipped_statistics(
        products,
        Norms(1.0, weights=weights),
    )
    assert norms.max() <= 1 + 1e-5
    return {name: value / weights[name] for name, value in rounded(sums).items()}


def server_of(
    algorithm: OneShot,
    rows: Rows,
    **std: float,
) -> Server:
    """The server after all releases without noise; it is told the noise ``std``, or none."""
    server = algorithm.initial_server(Seeds(0))
    for statistic in algorithm.statistics():
        noise = {name: std.get(name, 0.0) for name in statistic.weights}
        for _ in range(statistic.steps):
            sums = exact_sums(
                statistic,
                rows,
                algorithm.broadcast(server),
            )
            statistic.receive(server, sums, noise)
    return server
