"""The prototypes' own mathematics."""

import torch
from released import centred_at

from baselines.dp_gaussian import DPPrototypes, InCoordinatesParams
from fedsim.methods import Seeds, Server, Task

DIM, CLASSES = 500, 3


def method() -> DPPrototypes:
    return DPPrototypes(InCoordinatesParams(), Task(DIM, CLASSES, 2))


def prototypes(std: float, counts: torch.Tensor) -> torch.Tensor:
    """Along the first three axes, of classes with ``counts`` rows whose means are 0.5 long, from sums with noise of that ``std``."""
    server = Server(torch.nn.Module(), Seeds(0), tensors=centred_at(torch.zeros(DIM)))
    sums = 0.5 * counts * torch.eye(CLASSES, DIM) + std * torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0))
    method().receive_prototypes(server, {"class_sums": sums, "class_counts": counts}, {"class_sums": std, "class_counts": 0.0})
    return server.tensors["prototypes"]


def test_without_noise_prototypes_have_length_one_and_a_row_goes_to_the_nearest_angle() -> None:
    counts = torch.tensor([[1000.0], [100.0], [10.0]])
    found = prototypes(0.0, counts)
    torch.testing.assert_close(found, torch.eye(CLASSES, DIM))
    algorithm, mean = method(), torch.full((DIM,), 0.1)
    server = Server(torch.nn.Module(), Seeds(0), tensors=centred_at(mean) | {"prototypes": found})
    rows = mean + torch.tensor([[0.1], [1.0], [3.0]]) * (torch.eye(CLASSES, DIM) + 0.4 * torch.eye(CLASSES, DIM).roll(1, 0))
    assert algorithm.classifier(server).probabilities(rows).argmax(1).tolist() == [0, 1, 2]
