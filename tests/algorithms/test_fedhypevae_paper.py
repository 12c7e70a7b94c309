"""The paper's literal form: a client's whole contribution is clipped."""

from typing import Any

import numpy as np
import pytest
import torch
from streams import seeded
from torch import Tensor

from algorithms.fedhypevae import FedHypeVAE
from algorithms.hyper_cvae import HyperCVAE
from fedsim.batch import Layout
from fedsim.evidence.check.check import guarded
from fedsim.evidence.check.others import per_example
from fedsim.evidence.check.sensitivity import sensitivity
from fedsim.evidence.check.subject import subject
from fedsim.methods import Batch, Message, Seeds, Server, Task, Unit
from fedsim.methods.parameters import l2_norm
from fedsim.models.kernel import kernel
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool

DIM = 6
CLASSES = 3
CLIENTS = 4
SMALL = {
    "form": "paper",
    "latent": 2,
    "code": 2,
    "hyper_hidden": 4,
    "encoder_hidden": [5],
    "decoder_hidden": [5],
    "local_steps": 2,
}


def paper_form(
    unit: Unit,
    clients: int = CLIENTS,
    **params: Any,
) -> FedHypeVAE:
    given = FedHypeVAE.Params.model_validate(SMALL | params)
    return FedHypeVAE(given, Task(DIM, CLASSES, clients, unit))


@pytest.mark.parametrize(("unit", "bound"), [("client", 1.0), ("example", 2.0), ("group", 2.0)])
@pytest.mark.parametrize("noised", ["shared", "all"])
def test_a_clipped_client_bounds_every_unit(
    noised: str,
    unit: Unit,
    bound: float,
) -> None:
    algorithm = paper_form(unit, noised=noised, sample_rate=0.1)
    (release,) = algorithm.releases()
    assert algorithm.claim() == "proved"
    assert algorithm.sensitivity() == bound
    assert release.sample_rate == 1


@pytest.mark.slow
@pytest.mark.parametrize("noised", ["all", "shared"])
@pytest.mark.parametrize("unit", ["example", "client"])
def test_no_tried_unit_changes_a_round_by_more_than_is_claimed(
    unit: Unit,
    noised: str,
) -> None:
    params = SMALL | {"noised": noised, "clip": 0.01}
    options = [f"{name}={value}" for name, value in params.items()]
    tried = subject("fedhypevae", options, unit, "aggregate")
    assert guarded(sensitivity, tried).passed
    assert guarded(per_example, tried).passed is None


def cohorts_of(algorithm: FedHypeVAE) -> list[Cohort]:
    """Cohorts of one client each, before the first round."""
    x = torch.randn(40, DIM, generator=seeded(0)).numpy()
    y = np.arange(40) % CLASSES
    params = algorithm.params.model_dump()
    cohorts = []
    for client, rows in enumerate(np.split(np.arange(40), CLIENTS)):
        spec = CohortSpec(
            "fedhypevae",
            params,
            algorithm.task,
            None,
            Seeds(0),
            (client,),
            (rows,),
        )
        cohorts.append(Cohort(spec, x, y))
    return cohorts


def server_of(algorithm: FedHypeVAE) -> Server:
    """A server whose hypernetwork is nowhere zero."""
    server = algorithm.initial_server(Seeds(0))
    stream = seeded(1)
    with torch.no_grad():
        for parameter in server.model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=stream))
    return server


def codes_of(cohorts: list[Cohort]) -> list[Tensor]:
    models: list[Any] = [cohort.clients.model for cohort in cohorts]
    return [model.code.weight.detach().clone() for model in models]


def first_messages(
    algorithm: FedHypeVAE,
    cohorts: list[Cohort],
) -> list[Message]:
    broadcast = algorithm.broadcast(server_of(algorithm))
    return list(LocalPool(cohorts).round(next(algorithm.schedule()), broadcast))


def test_all_that_a_client_sends_is_clipped_jointly() -> None:
    algorithm = paper_form(
        "client",
        batch_size=8,
        clip=1e-3,
        noised="shared",
    )
    for message in first_messages(algorithm, cohorts_of(algorithm)):
        assert l2_norm(message.sums) == pytest.approx(1e-3, rel=1e-3)


def test_the_change_of_a_released_code_is_clipped_with_it() -> None:
    algorithm = paper_form(
        "client",
        batch_size=8,
        clip=1e-3,
        noised="all",
    )
    cohorts = cohorts_of(algorithm)
    before = codes_of(cohorts)
    messages = first_messages(algorithm, cohorts)
    for old, new, message in zip(before, codes_of(cohorts), messages, strict=True):
        norm = l2_norm({**message.sums, "code": new - old})
        assert norm == pytest.approx(1e-3, rel=1e-3)


def test_the_batch_mmd_is_that_of_all_pairs_and_mixes_rows() -> None:
    algorithm = paper_form("client", clients=1, kernel=2.0)
    model = HyperCVAE(algorithm.params, DIM, CLASSES, 1)
    stream = seeded(0)
    x = torch.randn(7, DIM, generator=stream)
    y = torch.arange(7) % CLASSES
    draws = {
        name: torch.randn(7, *shape, generator=stream) for name, shape in algorithm.draws().items()
    }
    batch = Batch(
        x,
        y,
        draws,
        Layout(torch.zeros(7, dtype=torch.long), 1),
    )
    codes = model.codes(1).expand(7, -1)
    with torch.no_grad():
        part = algorithm.loss(model, batch)["kernel"]
        made = model.generate(codes, y, draws["prior"], draws["observation"])[:, 0]
    real, generated, mixed = (
        kernel(torch.cdist(a, b).square()) for a, b in ((x, x), (made, made), (x, made))
    )
    unlike = ~torch.eye(7, dtype=torch.bool)
    expected = real[unlike].mean() + generated[unlike].mean() - 2 * mixed.mean()
    torch.testing.assert_close(
        part,
        (2 * expected).expand(7),
        rtol=1e-4,
        atol=1e-5,
    )
