"""The moments that FedHypeVAE warm and sites release, and what they are worth without noise."""

from dataclasses import replace

import pytest
import torch
from cells import centred_at
from exact import exact_sums, rows_of, server_of
from streams import seeded
from torch import Tensor
from torch.nn.functional import normalize

from algorithms import fedhypevae_warm
from algorithms.fedhypevae_sites import (
    FedHypeVAESites,
    FedHypeVAESitesParams,
)
from algorithms.fedhypevae_warm import FedHypeVAEWarm, FedHypeVAEWarmParams
from fedsim.methods import (
    Coordinates,
    Norms,
    Rows,
    Seeds,
    Task,
    clipped_statistics,
    spectral_function,
    unit_weights,
)
from fedsim.methods.algorithm import solved_plan

DIM = 10
CLASSES = 3
SITES = 2
WIDE = FedHypeVAEWarm(FedHypeVAEWarmParams(), Task(1280, 2, 1))


def emphasis(rows: int) -> Tensor:
    """Factor on the weights of class sums, class counts and the second moment."""
    server = replace(
        WIDE.initial_server(Seeds(0)),
        plan=solved_plan(WIDE, 1.0, 1e-4),
    )
    return WIDE.emphasis(server, torch.tensor(float(rows)))


@pytest.mark.parametrize(("rows", "second"), [(100_000, 1.0), (2000, 0.62), (100, 0.08)])
def test_with_few_rows_the_second_moment_has_less_of_the_budget(
    rows: int,
    second: float,
) -> None:
    of_sums, of_counts, of_second = emphasis(rows).tolist()
    assert of_second == pytest.approx(second, rel=0.1)
    assert (of_sums > 1) == (second < 1)
    assert (of_counts > 1) == (second < 1)


@pytest.mark.parametrize("rows", [100_000, 2000, 100])
def test_a_row_uses_all_of_its_joint_norm(rows: int) -> None:
    x = normalize(torch.randn(50, 1280, generator=seeded(0)))
    broadcast = centred_at(torch.zeros(1280)) | {
        "emphasis": emphasis(rows),
        "class_centres": torch.zeros(2, 1280),
        "radius": torch.tensor(0.5),
    }
    products = WIDE.moment_products(
        rows_of(x, torch.zeros(50).long()),
        broadcast,
    )
    weights = unit_weights(fedhypevae_warm.MOMENT_WEIGHTS)
    _, norms = clipped_statistics(
        products,
        Norms(1.0, weights=weights),
    )
    torch.testing.assert_close(norms, torch.ones(50))


def rows_of_sites(shift: float) -> Rows:
    """Unit rows of classes with their own covariances; sites are ``shift`` apart."""
    stream = seeded(0)
    count = 6000
    y = torch.arange(count) % CLASSES
    site = torch.arange(count) // CLASSES % SITES
    noise = torch.randn(CLASSES, DIM, DIM, generator=stream) / 40**0.5
    mixing = 0.12 * (torch.eye(DIM) + noise)
    means = 0.1 * torch.randn(CLASSES, DIM, generator=stream)
    moved = shift * torch.randn(SITES, DIM, generator=stream)
    white = torch.randn(count, DIM, generator=stream)
    x = 1 + means[y] + moved[site] + torch.einsum("nij,nj->ni", mixing[y], white)
    return Rows(normalize(x), y, site)


def class_means(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([x[y == label].mean(0) for label in range(CLASSES)])


WARM = FedHypeVAEWarm(
    FedHypeVAEWarmParams(block=2),
    Task(DIM, CLASSES, SITES),
)


def test_rows_are_centred_at_class_means_that_stand_out_of_the_noise() -> None:
    rows = rows_of_sites(0.0)
    stored = server_of(WARM, rows).tensors
    coordinates = Coordinates(stored).of_rows(rows.x)
    means = class_means(coordinates, rows.y)
    # The centres are means of clipped rows, so they are nearer to zero.
    assert (stored["class_centres"] - means).norm() < 0.35 * means.norm()
    assert torch.cosine_similarity(stored["class_centres"], means).min() > 0.95
    within = (coordinates - means[rows.y]).square().sum() / coordinates.square().sum()
    radius = stored["radius"] / fedhypevae_warm.TUNED.clip
    torch.testing.assert_close(
        radius,
        within.sqrt(),
        rtol=0.1,
        atol=0,
    )


def test_class_means_in_the_noise_are_no_centres() -> None:
    stored = server_of(WARM, rows_of_sites(0.0), class_sums=3000.0).tensors
    assert not stored["class_centres"].any()
    assert stored["radius"] == pytest.approx(fedhypevae_warm.TUNED.clip, abs=1e-3)


@pytest.mark.parametrize("site", range(SITES))
@pytest.mark.parametrize(("shift", "apart"), [(0.05, False), (0.3, True)])
def test_without_noise_a_site_has_its_own_class_means_and_covariance(
    shift: float, apart: bool, site: int
) -> None:
    rows = rows_of_sites(shift)
    algorithm = FedHypeVAESites(
        FedHypeVAESitesParams(block=4),
        Task(DIM, CLASSES, SITES),
    )
    stored = server_of(algorithm, rows).tensors
    of_site = rows.client == site
    x = rows.x[of_site]
    y = rows.y[of_site]
    centre = x.mean(0) if apart else rows.x.mean(0)
    u = (x - centre) / stored["radius"] @ stored["basis"]
    means = class_means(u, y)
    found = stored["prior_means"] + stored["shifts"][site]
    of_classes = stored["prior_covariances"].mean(0)
    white = spectral_function(of_classes, lambda values: values.rsqrt())
    relative = white @ torch.cov((u - means[y]).T) @ white
    expected = 4 * relative / relative.trace()
    torch.testing.assert_close(
        stored["client_centres"][site],
        centre,
        atol=1e-4,
        rtol=0,
    )
    assert (found - means).norm() < 0.05 * means.norm()
    assert (stored["site_covariances"][site] - expected).norm() < 0.12


@pytest.mark.parametrize(("classes", "directions"), [(3, 384), (455, 384), (456, 383), (1000, 259)])
def test_matrices_of_many_classes_are_smaller(classes: int, directions: int) -> None:
    algorithm = FedHypeVAEWarm(FedHypeVAEWarmParams(), Task(384, classes, 1))
    assert algorithm.most_directions() == directions
    assert classes * directions**2 <= fedhypevae_warm.TUNED.most_entries


def test_statistics_of_many_sites_stay_within_the_bound_of_their_size() -> None:
    sites = FedHypeVAESites(FedHypeVAESitesParams(block=4), Task(DIM, CLASSES, 200))
    rows = rows_of_sites(0.05)
    server = sites.initial_server(Seeds(0))
    numbers = 0
    for statistic in sites.statistics():
        sums = exact_sums(statistic, rows, sites.broadcast(server))
        statistic.receive(server, sums, dict.fromkeys(sums, 0.0))
        numbers += sum(value.numel() for value in sums.values())
    assert 0.3 * sites.statistic_numbers() < numbers < 1.1 * sites.statistic_numbers()
