"""The paper's literal form: it trains, a client's whole contribution is clipped, nothing a client
keeps leaves it.
"""

from typing import Any

import numpy as np
import pytest
import torch

from algorithms.fedhypevae import FedHypeVAE
from algorithms.hyper_cvae import HyperCVAE
from fedsim.batch import Layout
from fedsim.evidence.check.check import guarded
from fedsim.evidence.check.others import per_example
from fedsim.evidence.check.sensitivity import sensitivity
from fedsim.evidence.check.subject import subject
from fedsim.methods import Batch, Seeds, Task, Unit
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
    "encoder_hidden": (5,),
    "decoder_hidden": (5,),
    "local_steps": 2,
}


def started(algorithm: FedHypeVAE, given: dict[str, Any]) -> list[Cohort]:
    """Cohorts of one client each, before the first round."""
    x = torch.randn(40, DIM, generator=torch.Generator().manual_seed(0)).numpy()
    y = np.arange(40) % CLASSES
    rows = tuple(np.split(np.arange(40), CLIENTS))
    specs = (
        CohortSpec("fedhypevae", given, algorithm.task, None, Seeds(0), (k,), rows[k : k + 1])
        for k in range(CLIENTS)
    )
    return [Cohort(spec, x, y) for spec in specs]


@pytest.mark.parametrize("unit", ["client", "example", "group"])
@pytest.mark.parametrize("noised", ["shared", "all"])
def test_its_claim_is_proved_for_whatever_its_client_may_become(noised: str, unit: Unit) -> None:
    algorithm = FedHypeVAE(
        FedHypeVAE.Params(form="paper", noised=noised, sample_rate=0.1),
        Task(DIM, CLASSES, CLIENTS, unit),
    )
    (release,) = algorithm.releases()
    assert algorithm.claim() == "proved"
    assert algorithm.sensitivity() == (1.0 if unit == "client" else 2.0)
    assert release.sample_rate == 1


@pytest.mark.slow
@pytest.mark.parametrize("noised", ["all", "shared"])
@pytest.mark.parametrize("unit", ["example", "client"])
def test_no_unit_that_is_tried_changes_a_round_by_more_than_is_claimed(
    unit: Unit, noised: str
) -> None:
    brief = [
        f"{key}={list(value) if isinstance(value, tuple) else value}"
        for key, value in SMALL.items()
    ]
    tried = subject("fedhypevae", [*brief, f"noised={noised}", "clip=0.01"], unit, "aggregate")
    assert guarded(sensitivity, tried).passed
    assert guarded(per_example, tried).passed is None


def test_all_that_a_client_sends_is_clipped_jointly_with_the_change_of_a_released_code() -> None:
    for noised in ("shared", "all"):
        given = {**SMALL, "batch_size": 8, "clip": 1e-3, "noised": noised}
        algorithm = FedHypeVAE(FedHypeVAE.Params(**given), Task(DIM, CLASSES, CLIENTS, "client"))
        cohorts = started(algorithm, given)
        server = algorithm.initial_server(Seeds(0))
        stream = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in server.model.parameters():  # a hypernetwork that is nowhere zero
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=stream))
        start = [cohort.clients.model.code.weight.detach().clone() for cohort in cohorts]
        messages = LocalPool(cohorts).round(next(algorithm.schedule()), algorithm.broadcast(server))
        for before, cohort, message in zip(start, cohorts, messages, strict=True):
            if noised == "all":
                moved = {"code": cohort.clients.model.code.weight.detach() - before}
            else:
                moved = {}
            assert l2_norm({**message.sums, **moved}) == pytest.approx(1e-3, rel=1e-3)


def test_the_batch_mmd_is_that_of_all_pairs_and_mixes_rows() -> None:
    algorithm = FedHypeVAE(FedHypeVAE.Params(**SMALL, kernel=2.0), Task(DIM, CLASSES, 1, "client"))
    model = HyperCVAE(algorithm.params, DIM, CLASSES, 1)
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(7, DIM, generator=stream)
    y = torch.arange(7) % CLASSES
    draws = {
        name: torch.randn(7, *shape, generator=stream) for name, shape in algorithm.draws().items()
    }
    with torch.no_grad():
        batch = Batch(x, y, draws, Layout(torch.zeros(7, dtype=torch.long), 1))
        part = algorithm.loss(model, batch)["kernel"]
        made = model.generate(
            model.codes(1).expand(7, -1), y, draws["prior"], draws["observation"]
        )[:, 0]
    pairs = [kernel(torch.cdist(a, b).square()) for a, b in ((x, x), (made, made), (x, made))]
    unlike = ~torch.eye(7, dtype=torch.bool)
    expected = pairs[0][unlike].mean() + pairs[1][unlike].mean() - 2 * pairs[2].mean()
    torch.testing.assert_close(part, (2 * expected).expand(7), rtol=1e-4, atol=1e-5)
