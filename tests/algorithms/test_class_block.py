"""The distribution of the block generator, and the pairs in which it draws its rows."""

from functools import partial

import pytest
import torch
from streams import seeded
from torch import Tensor

from algorithms.class_block import TUNED, BlockGenerator, SitesGenerator, between
from fedsim.privacy.statistics import spectral

DIM = 6
BLOCK = 4
CLASSES = 3


def random_covariances(draws: Tensor) -> Tensor:
    return draws @ draws.mT + torch.eye(draws.shape[-1])


def released() -> dict[str, Tensor]:
    """Made-up tensors of all sites together."""
    normal = partial(torch.randn, generator=seeded(3))
    mixing = normal(CLASSES, BLOCK, BLOCK)
    root = normal(DIM, DIM)
    return {
        "centre": normal(DIM),
        "radius": torch.tensor(0.4),
        "middle": normal(DIM),
        "root": random_covariances(root),
        "directions": torch.linalg.qr(normal(DIM, BLOCK))[0],
        "prior_means": 2 * normal(CLASSES, BLOCK),
        "prior_covariances": random_covariances(mixing),
    }


def released_by_sites() -> dict[str, Tensor]:
    """The first site is as all are; the second has its own centre, shifts and covariance."""
    tensors = released()
    centre = tensors["centre"]
    normal = partial(torch.randn, generator=seeded(5))
    mixing = normal(BLOCK, BLOCK) / 2
    shifts = normal(CLASSES, BLOCK)
    centres = [
        centre,
        centre + 1,
    ]
    shifts_of_sites = [
        torch.zeros_like(shifts),
        shifts,
    ]
    covariances = [
        torch.eye(BLOCK),
        random_covariances(mixing),
    ]
    return tensors | {
        "client_centres": torch.stack(centres),
        "client_rows": torch.tensor([300.0, 100.0]),
        "shifts": torch.stack(shifts_of_sites),
        "site_covariances": torch.stack(covariances),
    }


def whitened(
    generator: BlockGenerator,
    label: int,
    first: int = 0,
) -> tuple[Tensor, Tensor]:
    """Coordinates in the block of one row of each of 20,000 pairs, and the rest, both float64."""
    t = {name: value.double() for name, value in generator.tensors.items()}
    labels = torch.full((40_000,), label)
    drawn = generator.sample(labels, seeded(0))
    rows = drawn[first::2].double()
    scaled = (rows - t["centre"]) / t["radius"] - t["middle"]
    w = torch.linalg.solve(t["root"], scaled.T).T
    inside = w @ t["directions"]
    outside = w - inside @ t["directions"].T
    return inside, outside


def assert_covariance(
    rows: Tensor,
    expected: Tensor,
    tolerance: float,
) -> None:
    covariance = torch.cov(rows.T)
    assert torch.allclose(
        covariance,
        expected.double(),
        atol=tolerance,
    )


def assert_mean(rows: Tensor, expected: Tensor) -> None:
    assert torch.allclose(
        rows.mean(0),
        expected.double(),
        atol=0.1,
    )


def assert_uncorrelated(inside: Tensor, outside: Tensor) -> None:
    together = torch.cat([inside, outside], 1)
    covariance = torch.cov(together.T)
    assert covariance[:BLOCK, BLOCK:].abs().max() < 0.1


@pytest.mark.parametrize("label", range(CLASSES))
@pytest.mark.parametrize(
    "first",
    [0, 1],
    ids=["first of a pair", "second of a pair"],
)
def test_each_row_of_a_pair_has_the_distribution_of_its_class(
    first: int,
    label: int,
) -> None:
    generator = BlockGenerator(released())
    inside, outside = whitened(generator, label, first)
    root = generator.roots[label]
    directions = generator.tensors["directions"]
    beyond = torch.eye(DIM) - directions @ directions.T
    assert_mean(inside, generator.means[label])
    assert_covariance(inside, root.T @ root, 0.25)
    assert_covariance(outside, beyond, 0.05)
    assert_uncorrelated(inside, outside)


def sites_of_shared_rows(labels: Tensor, paired: bool) -> Tensor:
    """The site about whose centre each row of the shared generator lies, by its distance."""
    tensors = released_by_sites()
    of_sites = SitesGenerator(tensors, paired).sample(
        labels,
        seeded(0),
    )
    about_zero = BlockGenerator(tensors, paired).sample(
        labels,
        seeded(0),
    )
    site = (of_sites - about_zero).mean(1).round()
    assert torch.allclose(
        of_sites,
        about_zero + site[:, None],
        atol=1e-4,
    )
    return site


@pytest.mark.parametrize("paired", [True, False])
def test_shared_rows_are_about_sites_in_proportion_to_their_rows(paired: bool) -> None:
    labels = torch.arange(CLASSES).repeat_interleave(16)
    order = torch.randperm(len(labels), generator=seeded(1))
    labels = labels[order]
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
    generator = SitesGenerator(tensors).of_client(1)
    label = 1
    inside, outside = whitened(generator, label)
    means = tensors["prior_means"] + tensors["shifts"][1]
    middle = means.mean(0)
    mean = middle + TUNED.closeness * (means[label] - middle)
    spread = generator.tensors["spread"]
    root = generator.roots[label]
    covariance = root.T @ root
    tolerance = 0.06 * float(covariance.norm())
    assert_mean(inside, mean)
    assert torch.allclose(
        spread @ spread,
        tensors["site_covariances"][1],
        atol=1e-4,
    )
    assert_covariance(
        inside,
        spread @ covariance @ spread,
        tolerance,
    )
    assert_uncorrelated(inside, outside)


def test_roots_do_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    together = BlockGenerator(released()).roots
    monkeypatch.setattr(spectral, "NUMBERS_AT_ONCE", 1)
    torch.testing.assert_close(BlockGenerator(released()).roots, together)


def test_of_many_directions_those_in_which_class_means_vary_most_are_taken() -> None:
    scales = torch.tensor([1.0, 4.0, 2.0, 3.0])
    means = torch.diag(scales).double()
    centred = means - means.mean(0)
    taken = between(centred, 2)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    widest = vectors[:, -2:]
    torch.testing.assert_close(
        taken @ taken.T,
        widest @ widest.T,
    )
    assert between(centred, 4).shape == (4, 3)
