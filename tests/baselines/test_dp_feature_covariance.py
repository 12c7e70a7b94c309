"""The preconditioned steps' own mathematics."""

import math

import torch
from released import centred_at

from baselines.dp_feature_covariance import LEAST_RIDGE, DPFeatureCovariance, DPFeatureCovarianceParams
from fedsim.methods import Round, Seeds, Server, Task

DIM, CLASSES = 6, 3


def method(**params: float) -> DPFeatureCovariance:
    return DPFeatureCovariance(DPFeatureCovarianceParams.model_validate(params), Task(DIM, CLASSES, 2))


def preconditioned(second: torch.Tensor, std: float, **params: float) -> Server:
    algorithm = method(**params)
    server = Server(algorithm.build(0), Seeds(0), tensors=centred_at(torch.zeros(DIM)))
    algorithm.receive_second(server, {"second": second}, {"second": std})
    return server


def test_the_preconditioner_is_the_inverse_of_the_second_moment_and_a_ridge_as_large_as_its_noise() -> None:
    values = torch.tensor([100.0, 30.0, 10.0, 3.0, 1.0, -5.0])
    known, std = values.clamp_min(0), 2.0
    ridge = 0.5 * math.sqrt(2 * DIM) * std + LEAST_RIDGE * float(values.sum()) / DIM
    found = preconditioned(torch.diag(values), std, ridge=0.5).tensors["preconditioner"]
    torch.testing.assert_close(found, torch.diag(1 / (known + ridge)))


def test_a_step_goes_along_the_preconditioned_sum() -> None:
    server = preconditioned(torch.diag(torch.arange(1.0, DIM + 1)), 0.0)
    algorithm, sums = method(learning_rate=2.0), torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0))
    algorithm.server_step(server, Round(0, 2, 0, 0, algorithm.releases()[-1]), {"head.weight": sums})
    torch.testing.assert_close(server.model.get_parameter("head.weight").detach(), -2 * sums @ server.tensors["preconditioner"])
