"""The moments that FedHypeVAE warm and sites release: what one example can change, what is spent,
and what they are worth.
"""

from dataclasses import replace

import pytest
import torch
from cells import centred_at

from algorithms import fedhypevae_sites, fedhypevae_warm
from fedsim.methods import (
    Coordinates,
    Norms,
    Rows,
    Seeds,
    Task,
    Tensors,
    clipped_statistics,
    rounded,
    spectral_function,
    unit_weights,
)
from fedsim.methods.algorithm import solved_plan


@pytest.mark.parametrize(("rows", "second"), [(100_000, 1.0), (2000, 0.62), (100, 0.08)])
def test_of_fewer_rows_the_second_moment_has_less_of_the_budget_and_a_row_uses_all_of_it(
    rows: int, second: float
) -> None:
    algorithm = fedhypevae_warm.FedHypeVAEWarm(
        fedhypevae_warm.FedHypeVAEWarmParams(), Task(1280, 2, 1)
    )
    server = replace(algorithm.initial_server(Seeds(0)), plan=solved_plan(algorithm, 1.0, 1e-4))
    emphasis = algorithm.emphasis(server, torch.tensor(float(rows)))
    x = torch.nn.functional.normalize(
        torch.randn(50, 1280, generator=torch.Generator().manual_seed(0))
    )
    told = centred_at(torch.zeros(1280)) | {
        "emphasis": emphasis,
        "class_centres": torch.zeros(2, 1280),
        "radius": torch.tensor(0.5),
    }
    products = algorithm.moment_products(
        Rows(x, torch.zeros(50).long(), torch.zeros(50).long()), told
    )
    weights = unit_weights(fedhypevae_warm.MOMENT_WEIGHTS)
    _, joint = clipped_statistics(products, Norms(1.0, weights=weights))
    torch.testing.assert_close(joint, torch.ones(50))
    assert float(emphasis[2]) == pytest.approx(second, rel=0.1)
    assert (float(emphasis[1]) > 1) == (float(emphasis[0]) > 1) == (second < 1)


SITES = 2


def of_sites(shift: float) -> tuple[Rows, torch.Tensor]:
    """Unit rows of three classes, each with a covariance of its own; sites are ``shift`` apart."""
    stream = torch.Generator().manual_seed(0)
    rows = 6000
    dim = 10
    classes = 3
    y = torch.arange(rows) % classes
    site = torch.arange(rows) // classes % SITES
    mixing = 0.12 * (torch.eye(dim) + torch.randn(classes, dim, dim, generator=stream) / 40**0.5)
    means = 0.1 * torch.randn(classes, dim, generator=stream)
    moved = shift * torch.randn(SITES, dim, generator=stream)
    x = (
        1
        + means[y]
        + moved[site]
        + torch.einsum("nij,nj->ni", mixing[y], torch.randn(rows, dim, generator=stream))
    )
    return Rows(torch.nn.functional.normalize(x), y, site), torch.stack([y, site])


def without_noise(algorithm: fedhypevae_warm.FedHypeVAEWarm, rows: Rows, **std: float) -> Tensors:
    """What is told of exact sums, whose noise is received as ``std``, else none.

    Noise on the moments is told before their weights are divided out, so it is larger where they
    are.
    """
    server = algorithm.initial_server(Seeds(0))
    for statistic in algorithm.statistics():
        weights = unit_weights(statistic.weights)
        sums, _ = clipped_statistics(
            statistic.products(rows, algorithm.broadcast(server)), Norms(1.0, weights=weights)
        )
        if statistic.name == "moments":
            emphasis = server.tensors["emphasis"].tolist()
        else:
            emphasis = [1.0] * len(weights)
        noise = {name: std.get(name, 0.0) * by for name, by in zip(weights, emphasis, strict=True)}
        statistic.receive(
            server, {name: value / weights[name] for name, value in rounded(sums).items()}, noise
        )
    return server.tensors


def test_rows_are_taken_about_their_classes_means_where_these_stand_out_of_the_noise() -> None:
    algorithm = fedhypevae_warm.FedHypeVAEWarm(
        fedhypevae_warm.FedHypeVAEWarmParams(block=2), Task(10, 3, SITES)
    )
    rows, (y, _) = of_sites(0.0)
    seen = without_noise(algorithm, rows)
    hidden = without_noise(algorithm, rows, class_sums=3000.0)
    about = Coordinates(seen).of_rows(rows.x)
    means = torch.stack([about[y == label].mean(0) for label in range(3)])
    # of clipped rows, so nearer to the centre
    assert (seen["class_centres"] - means).norm() < 0.35 * means.norm()
    assert torch.cosine_similarity(seen["class_centres"], means).min() > 0.95
    within = (about - means[y]).square().sum() / about.square().sum()
    torch.testing.assert_close(
        seen["radius"] / fedhypevae_warm.TUNED.clip, within.sqrt(), rtol=0.1, atol=0
    )
    assert not hidden["class_centres"].any()
    assert hidden["radius"] == pytest.approx(fedhypevae_warm.TUNED.clip, abs=1e-3)


@pytest.mark.parametrize(("shift", "apart"), [(0.05, False), (0.3, True)])
def test_without_noise_a_site_has_the_means_of_its_own_rows_of_every_class_and_their_covariance(
    shift: float, apart: bool
) -> None:
    rows, (y, site) = of_sites(shift)
    told = without_noise(
        fedhypevae_sites.FedHypeVAESites(
            fedhypevae_sites.FedHypeVAESitesParams(block=4), Task(10, 3, SITES)
        ),
        rows,
    )
    for own in range(SITES):
        if apart:
            centre = rows.x[site == own].mean(0)
        else:
            centre = rows.x.mean(0)
        torch.testing.assert_close(told["client_centres"][own], centre, atol=1e-4, rtol=0)
        u = (rows.x - centre) / told["radius"] @ told["basis"]
        means = torch.stack([u[(y == label) & (site == own)].mean(0) for label in range(3)])
        assert (told["prior_means"] + told["shifts"][own] - means).norm() < 0.05 * means.norm()
        about = u[site == own] - means[y[site == own]]
        white = spectral_function(told["prior_covariances"].mean(0), lambda values: values.rsqrt())
        relative = white @ torch.cov(about.T) @ white
        assert (told["site_covariances"][own] - 4 * relative / relative.trace()).norm() < 0.12
