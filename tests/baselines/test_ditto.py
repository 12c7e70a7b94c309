"""One classifier per client beside the shared one."""

from typing import Any

import pytest
import torch
from cells import one_cell, quick
from streams import seeded
from torch import Tensor

from baselines.ditto import DPDitto
from fedsim.batch import Layout
from fedsim.methods import Batch, Norms
from fedsim.privacy.clipping import clipped_sum


def test_one_row_changes_both_classifiers_by_at_most_the_clip() -> None:
    _, _, algorithm = one_cell(quick("dp-ditto"), epsilon=4.0)
    assert isinstance(algorithm, DPDitto)
    model = algorithm.build(1)
    x = torch.randn(
        12,
        algorithm.task.dim,
        generator=seeded(0),
    )
    y = torch.arange(12) % algorithm.task.classes

    def loss(model: Any, batch: Batch) -> Tensor:
        return torch.stack(list(algorithm.loss(model, batch).values())).sum(0)

    def clipped(rows: Tensor) -> Tensor:
        layout = Layout.on(
            x.device,
            torch.zeros(len(rows), dtype=torch.long),
            1,
        )
        batch = Batch(x[rows], y[rows], {}, layout)
        result = clipped_sum(
            model,
            loss,
            batch,
            Norms(algorithm.clip()),
            "bookkeeping",
        )
        return torch.cat([value.flatten() for value in result.sums.values()])

    everything = torch.arange(12)
    for row in range(12):
        change = clipped(everything) - clipped(everything[everything != row])
        assert float(change.norm()) == pytest.approx(algorithm.clip(), rel=1e-3)
