"""The unit that is looked for: of several, the one that adds most to what is released."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedsim.audit.evidence import evidence
from fedsim.audit.setting import Setting
from fedsim.audit.worlds import Canary, observed
from fedsim.data.normalise import unit_norm
from fedsim.seeds import Seeds

ROWS = 32
"""Rows of a client that is looked for: so many that hardly a sample of them is empty."""


def candidates(setting: Setting) -> Iterator[Canary]:
    """Rows of norm 1, as all data sets have them: of a single feature, in a random direction, against the others; of every label."""
    dim, count = setting.task.dim, 1 if setting.task.unit == "example" else ROWS
    spike = np.eye(1, dim, dtype=np.float32)
    random = np.random.default_rng(1).standard_normal((1, dim)).astype(np.float32)
    against = -sum(x.sum(0, keepdims=True) for x, _ in setting.others)
    for words, row in (("a row of one feature", spike), ("a row in a random direction", random), ("a row against the others", against)):
        for label in range(setting.task.classes):
            x = np.repeat(unit_norm(row.astype(np.float32)), count, 0)
            yield Canary(x, np.full(count, label), f"{words}, of label {label}")


def saturating(setting: Setting, root: int) -> Canary:
    """The candidate that adds most to a training's steps; of equals the first."""
    found = [(round(evidence(observed(setting, each, Seeds(root), present=True)).ratio, 3), each) for each in candidates(setting)]
    return max(found, key=lambda pair: pair[0])[1]
