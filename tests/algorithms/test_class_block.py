"""The distribution of the block generator, and the pairs in which it draws its rows."""

import pytest
import torch
from torch import Tensor

from algorithms.class_block import TUNED, BlockGenerator, SitesGenerator, between
from fedsim.privacy.statistics import spectral

DIM = 6
BLOCK = 4
CLASSES = 3


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_covariances(draws: Tensor) -> Tensor:
    return draws @ draws.mT + torch.eye(draws.shape[-1])


def released() -> dict[str, Tensor]:
    """Made-up tensors of all sites together."""
    random = stream(3)
    mixing = torch.randn(CLASSES, BLOCK, BLOCK, generator=random)
    root = torch.randn(DIM, DIM, generator=random)
    return {
        "centre": torch.randn(DIM, generator=random),
        "radius": torch.tensor(0.4),
        "middle": torch.randn(DIM, generator=random),
        "root": random_covariances(root),
        "directions": torch.linalg.qr(torch.randn(DIM, BLOCK, generator=random))[0],
        "prior_means": 2 * torch.randn(CLASSES, BLOCK, generator=random),
        "prior_covariances": random_covariances(mixing),
    }


def released_by_sites() -> dict[str, Tensor]:
    """The first site is as all are; the second has its own centre, shifts and covariance."""
    tensors = released()
    random = stream(5)
    mixing = torch.randn(BLOCK, BLOCK, generator=random) / 2
    shifts = torch.randn(CLASSES, BLOCK, generator=random)
    return tensors | {
        "client_centres": torch.stack([tensors["centre"], tensors["centre"] + 1]),
        "client_rows": torch.tensor([300.0, 100.0]),
        "shifts": torch.stack([torch.zeros_like(shifts), shifts]),
        "site_covariances": torch.stack([torch.eye(BLOCK), random_covariances(mixing)]),
    }


def whitened(
    generator: BlockGenerator,
    label: int,
) -> tuple[Tensor, Tensor]:
    """Coordinates in the block of 40,000 rows of a label, and the rest, both float64."""
    t = {name: value.double() for name, value in generator.tensors.items()}
    rows = generator.sample(torch.full((40_000,), label), stream(0)).double()
    scaled = (rows - t["centre"]) / t["radius"] - t["middle"]
    w = torch.linalg.solve(t["root"], scaled.T).T
    inside = w @ t["directions"]
    return inside, w - inside @ t["directions"].T


def assert_uncorrelated(inside: Tensor, outside: Tensor) -> None:
    covariance = torch.cov(torch.cat([inside, outside], 1).T)[:BLOCK, BLOCK:]
    assert covariance.abs().max() < 0.1


@pytest.mark.parametrize("label", range(CLASSES))
@pytest.mark.parametrize("first", [0, 1], ids=["first of a pair", "second of a pair"])
def test_each_row_of_a_pair_has_the_distribution_of_its_class(
    first: int,
    label: int,
) -> None:
    generator = BlockGenerator(released())
    inside, outside = (part[first::2] for part in whitened(generator, label))
    covariance = generator.roots[label].T @ generator.roots[label]
    directions = generator.tensors["directions"]
    beyond = torch.eye(DIM) - directions @ directions.T
    assert torch.allclose(inside.mean(0), generator.means[label].double(), atol=0.1)
    assert torch.allclose(torch.cov(inside.T), covariance.double(), atol=0.25)
    assert torch.allclose(torch.cov(outside.T), beyond.double(), atol=0.05)
    assert_uncorrelated(inside, outside)


def sites_of_shared_rows(labels: Tensor, paired: bool) -> Tensor:
    """The site about whose centre each row of the shared generator lies, by its distance."""
    tensors = released_by_sites()
    of_sites = SitesGenerator(tensors, paired).sample(
        labels,
        stream(0),
    )
    about_zero = BlockGenerator(tensors, paired).sample(
        labels,
        stream(0),
    )
    site = (of_sites - about_zero).mean(1).round()
    assert torch.allclose(of_sites, about_zero + site[:, None], atol=1e-4)
    return site


@pytest.mark.parametrize("paired", [True, False])
def test_shared_rows_are_about_sites_in_proportion_to_their_rows(paired: bool) -> None:
    labels = torch.arange(CLASSES).repeat_interleave(16)
    labels = labels[torch.randperm(len(labels), generator=stream(1))]
    site = sites_of_shared_rows(labels, paired)
    for label in range(CLASSES):
        assert site[labels == label].sum() == 4


def test_both_rows_of_a_pair_are_about_one_centre() -> None:
    site = sites_of_shared_rows(
        torch.zeros(16, dtype=torch.long),
        paired=True,
    )
    assert torch.equal(site[::2], site[1::2])


def test_a_sites_rows_are_about_its_own_means_and_as_wide_as_it_is() -> None:
    tensors = released_by_sites()
    own = SitesGenerator(tensors).of_client(1)
    label = 1
    inside, outside = (part[::2] for part in whitened(own, label))
    means = tensors["prior_means"] + tensors["shifts"][1]
    middle = means.mean(0)
    mean = middle + TUNED.closeness * (means[label] - middle)
    spread = own.tensors["spread"]
    covariance = own.roots[label].T @ own.roots[label]
    tolerance = 0.06 * float(covariance.norm())
    expected = (spread @ covariance @ spread).double()
    assert torch.allclose(inside.mean(0), mean.double(), atol=0.1)
    assert torch.allclose(spread @ spread, tensors["site_covariances"][1], atol=1e-4)
    assert torch.allclose(torch.cov(inside.T), expected, atol=tolerance)
    assert_uncorrelated(inside, outside)


def test_roots_do_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    together = BlockGenerator(released()).roots
    monkeypatch.setattr(spectral, "NUMBERS_AT_ONCE", 1)
    torch.testing.assert_close(BlockGenerator(released()).roots, together)


def test_of_many_directions_those_in_which_class_means_vary_most_are_taken() -> None:
    means = torch.diag(torch.tensor([1.0, 4.0, 2.0, 3.0])).double()
    centred = means - means.mean(0)
    taken = between(centred, 2)
    vectors = torch.linalg.eigh(centred.T @ centred)[1]
    torch.testing.assert_close(taken @ taken.T, vectors[:, -2:] @ vectors[:, -2:].T)
    assert between(centred, 4).shape == (4, 3)
