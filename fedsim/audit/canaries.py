"""The unit that is looked for: of several, the one that adds most to what is released."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedsim.audit.evidence import evidence
from fedsim.audit.setting import Setting, clipped
from fedsim.audit.worlds import Canary, observed
from fedsim.data.normalise import unit_norm
from fedsim.privacy.plan import Unit
from fedsim.seeds import Seeds

ROWS: dict[Unit, int] = {"example": 1, "group": 4, "client": 32}
"""Rows of a unit that is looked for: of a client so many that hardly a sample of them is empty."""


def candidates(setting: Setting) -> Iterator[Canary]:
    """Rows of norm 1, as all data sets have them: of a single feature, in a random direction, against the others; of every label."""
    dim, count = setting.task.dim, ROWS[setting.task.unit]
    spike = np.eye(1, dim, dtype=np.float32)
    random = np.random.default_rng(1).standard_normal((1, dim)).astype(np.float32)
    against = -np.sum([x.sum(0, keepdims=True) for x, _ in setting.others], axis=0)
    for words, row in (("a row of one feature", spike), ("a row in a random direction", random), ("a row against the others", against)):
        for label in range(setting.task.classes):
            x = np.repeat(unit_norm(row.astype(np.float32)), count, 0)
            yield Canary(x, np.full(count, label), f"{words}, of label {label}")


CLIPS = (1.0, 0.1, 0.01)
"""Shares of the clip norm that are tried: noise is in units of it, so a claim is the same under any, and some canary is clipped."""
ENOUGH = 0.98


def saturating(setting: Setting, root: int) -> tuple[Setting, Canary]:
    """The candidate that adds most to a training's steps, of equals the first; where none is clipped, under a smaller clip norm.

    Args:
        setting: what is audited.
        root: of all random numbers.

    Returns:
        The setting, maybe with a smaller clip norm, and the canary.
    """
    best, chosen = -1.0, None
    clip = setting.params.get("clip")
    for share in CLIPS if isinstance(clip, int | float) else CLIPS[:1]:
        own = setting if share == 1 else clipped(setting, share * float(clip or 0))
        for each in candidates(own):
            ratio = round(evidence(observed(own, each, Seeds(root), present=True), own.plan.sensitivity).ratio, 3)
            if ratio > best:
                best, chosen = ratio, (own, each)
        if best >= ENOUGH:
            break
    assert chosen is not None
    return chosen
