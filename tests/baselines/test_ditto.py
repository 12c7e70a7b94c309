"""A classifier a client beside the shared one, with and without noise."""

from typing import Any

import pytest
import torch
from cells import one_cell, quick

from baselines.ditto import DPDitto
from fedsim.batch import Layout
from fedsim.methods import Batch, Norms
from fedsim.privacy.clipping import clipped_sum


def test_one_row_changes_both_classifiers_sums_together_by_the_clip_norm_at_most() -> None:
    _, _, algorithm = one_cell(quick("dp-ditto"), epsilon=4.0)
    assert isinstance(algorithm, DPDitto)
    model = algorithm.build(1)
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(12, algorithm.task.dim, generator=stream)
    y = torch.arange(12) % algorithm.task.classes

    def joint(model: Any, batch: Batch) -> torch.Tensor:
        return torch.stack(list(algorithm.loss(model, batch).values())).sum(0)

    def sums(rows: torch.Tensor) -> torch.Tensor:
        batch = Batch(
            x[rows], y[rows], {}, Layout.on(x.device, torch.zeros(len(rows), dtype=torch.long), 1)
        )
        return torch.cat(
            [
                value.flatten()
                for value in clipped_sum(
                    model, joint, batch, Norms(algorithm.clip()), "bookkeeping"
                ).sums.values()
            ]
        )

    for left_out in range(12):
        change = float(
            (
                sums(torch.arange(12)) - sums(torch.tensor([i for i in range(12) if i != left_out]))
            ).norm()
        )
        assert change == pytest.approx(algorithm.clip(), rel=1e-3)
