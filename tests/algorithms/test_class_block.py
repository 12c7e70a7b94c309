"""The block generator's law, and the pairs in which it draws its rows."""

import pytest
import torch
from torch import Tensor

from algorithms.class_block import TUNED, BlockGenerator, SitesGenerator

DIM = 6
BLOCK = 4
CLASSES = 3


def made_up() -> BlockGenerator:
    stream = torch.Generator().manual_seed(3)
    mixing = torch.randn(CLASSES, BLOCK, BLOCK, generator=stream)
    root = torch.randn(DIM, DIM, generator=stream)
    tensors = {
        "centre": torch.randn(DIM, generator=stream),
        "radius": torch.tensor(0.4),
        "middle": torch.randn(DIM, generator=stream),
        "root": root @ root.T + torch.eye(DIM),
        "directions": torch.linalg.qr(torch.randn(DIM, BLOCK, generator=stream))[0],
        "prior_means": 2 * torch.randn(CLASSES, BLOCK, generator=stream),
        "prior_covariances": mixing @ mixing.transpose(1, 2) + torch.eye(BLOCK),
    }
    return BlockGenerator(tensors)


def whitened(generator: BlockGenerator, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of rows in the block ``[n, k]``, and the rest ``[n, d]``."""
    t = generator.tensors
    rows = generator.sample(labels, torch.Generator().manual_seed(0)).double()
    w = torch.linalg.solve(
        t["root"].double(), ((rows - t["centre"]) / t["radius"] - t["middle"]).T
    ).T
    inside = w @ t["directions"].double()
    return inside, w - inside @ t["directions"].double().T


@pytest.mark.parametrize("which", [0, 1], ids=["first of a pair", "second of a pair"])
def test_each_row_of_a_pair_has_the_law_of_its_class(which: int) -> None:
    generator = made_up()
    for label in range(CLASSES):
        inside, outside = (
            part[which::2] for part in whitened(generator, torch.full((40_000,), label))
        )
        mean = generator.means[label]
        root = generator.roots[label]
        assert torch.allclose(inside.mean(0), mean.double(), atol=0.1)
        assert torch.allclose(torch.cov(inside.T), (root.T @ root).double(), atol=0.25)
        white = torch.eye(DIM) - generator.tensors["directions"] @ generator.tensors["directions"].T
        assert torch.allclose(torch.cov(outside.T), white.double(), atol=0.05)
        assert torch.allclose(
            torch.cov(torch.cat([inside, outside], 1).T)[:BLOCK, BLOCK:],
            torch.zeros(BLOCK, DIM).double(),
            atol=0.1,
        )


def of_two_sites() -> SitesGenerator:
    """The first site is as all are; the second has a centre, shifts and a covariance of its own."""
    tensors = made_up().tensors
    stream = torch.Generator().manual_seed(5)
    mixing = torch.randn(BLOCK, BLOCK, generator=stream) / 2
    own = {
        "client_centres": torch.stack([tensors["centre"], tensors["centre"] + 1]),
        "client_rows": torch.tensor([300.0, 100.0]),
        "shifts": torch.stack(
            [torch.zeros(CLASSES, BLOCK), torch.randn(CLASSES, BLOCK, generator=stream)]
        ),
        "site_covariances": torch.stack([torch.eye(BLOCK), mixing @ mixing.T + torch.eye(BLOCK)]),
    }
    return SitesGenerator(tensors | own)


@pytest.mark.parametrize("paired", [True, False])
def test_the_shared_rows_are_about_every_site_s_centre_as_often_as_it_has_rows(
    paired: bool,
) -> None:
    tensors = of_two_sites().tensors
    labels = torch.arange(CLASSES).repeat_interleave(16)
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    mixed, plain = (
        each(tensors, paired).sample(labels, torch.Generator().manual_seed(0))
        for each in (SitesGenerator, BlockGenerator)
    )
    second = (mixed - plain).mean(1).round().long()
    assert torch.allclose(mixed, plain + second[:, None].float(), atol=1e-4)
    for label in range(CLASSES):
        own = second[labels == label]
        assert own.sum() == 4
        # rows of a pair are about one centre
        assert not paired or torch.equal(own[::2], own[1::2])


def test_a_site_s_rows_are_about_its_own_means_and_as_wide_as_it_is() -> None:
    sites = of_two_sites()
    label = 1
    t = sites.tensors
    own = sites.of_client(1)
    inside, outside = (part[::2] for part in whitened(own, torch.full((40_000,), label)))
    means = t["prior_means"] + t["shifts"][1]
    assert torch.allclose(
        inside.mean(0),
        (means.mean(0) + TUNED.closeness * (means[label] - means.mean(0))).double(),
        atol=0.1,
    )
    drawn = own.roots[label].T @ own.roots[label]
    spread = own.tensors["spread"]
    assert torch.allclose(spread @ spread, t["site_covariances"][1], atol=1e-4)
    assert torch.allclose(
        torch.cov(inside.T), (spread @ drawn @ spread).double(), atol=0.06 * float(drawn.norm())
    )
    assert torch.allclose(
        torch.cov(torch.cat([inside, outside], 1).T)[:BLOCK, BLOCK:],
        torch.zeros(BLOCK, DIM).double(),
        atol=0.1,
    )
