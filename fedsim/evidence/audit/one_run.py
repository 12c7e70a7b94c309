"""The audit in one training: many canaries, each in it by a fair coin of its own (Steinke, Nasr & Jagielski 2023, arXiv 2305.08846).

For DP-SGD with one step a round. An adversary who sees every noisy sum, and knows each canary's clipped gradient at the round's model,
estimates all coins together by least squares (the linear estimate of least mean square error, coins having mean and variance 1/2 and 1/4),
and guesses of the highest estimates that they are in, of the lowest that they are out. Canaries hide each other, so the bound is weaker
than that of many trainings; it costs one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.data.normalise import unit_norm
from fedsim.errors import UserError
from fedsim.evidence.audit.setting import Setting
from fedsim.evidence.audit.worlds import Query, client_of, clients_of, flat, trained
from fedsim.methods.dp_sgd import DPSGD
from fedsim.methods.messages import Message, Round, Tensors
from fedsim.methods.parameters import add_in_order
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, LocalPool

FEWEST = 10
"""Canaries below which nothing is said."""


@dataclass(frozen=True)
class Scored:
    """One canary: whether it was in the training, its score, the most that it adds to a step in units of the claimed sensitivity."""

    number: int
    inside: bool
    score: float
    ratio: float


def check_one_run(setting: Setting, count: int) -> None:
    """Check that the audit in one run is for this algorithm, and that so many canaries can refute anything.

    Raises:
        UserError: one of the two is not so.
    """
    if not isinstance(setting.build(), DPSGD) or setting.task.unit != "example":
        what = "takes no noisy step a round on sums over examples, which the audit in one run looks at"
        raise UserError(f"algorithm {setting.algorithm}", what, "give --attack white-box")
    if count < FEWEST:
        raise UserError("pairs", f"{count} canaries are too few for any bound in one run", f"give {FEWEST} or more")


class CanaryPool(LocalPool):
    """The clients of one training, the last of which holds the canaries that are in it.

    Args:
        setting: what is audited.
        x, y: all canaries.
        coins: which are in.
        seeds: of the training.
    """

    def __init__(self, setting: Setting, x: NDArray[np.float32], y: NDArray[np.int64], coins: NDArray[np.bool_], seeds: Seeds) -> None:
        last = setting.canary_client
        own_x, own_y = setting.others[last]
        rows = np.concatenate([own_x, x[coins]]), np.concatenate([own_y, y[coins]])
        super().__init__([*(client_of(setting, seeds, k, setting.others[k]) for k in range(last)), client_of(setting, seeds, last, rows)])
        told = clients_of(self.cohorts[-1])
        self.setting = setting
        self.without = client_of(setting, seeds, last, setting.others[last], told)
        self.alone = [client_of(setting, seeds, last, (x[i : i + 1], y[i : i + 1]), told, canary=1, always=True) for i in range(len(x))]
        self.information, self.found = 4 * np.eye(len(x)), np.zeros(len(x))
        self.ratios = np.zeros(len(x))
        self._known: Tensors = {}

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        """See :class:`fedsim.methods.messages.Pool`."""
        sent = super().round(round_, broadcast)
        without = self.without.round(round_, broadcast)
        self._known = add_in_order([*(message.sums for message in sent[:-1]), without.sums])
        for each in self.alone:
            each.round(round_, broadcast)
        return sent

    def watch(self, round_: Round, noisy: Tensors) -> None:
        """Take a round's outputs, and score every canary by them."""
        live, without = _latest(self.cohorts[-1]), _latest(self.without)
        silo = self.setting.task.trust == "silo"
        seen = _apart(live.noised.sent, without.sent) if silo else _apart(noisy, self._known)
        output = flat({**seen, **{f"kept {name}": value for name, value in _apart(live.noised.kept, without.kept).items()}})
        variance = self.setting.plan.noise_std(round_.release.name) ** 2
        queries = [_latest(each) for each in self.alone]
        flats = [flat({**query.sent, **{f"kept {name}": value for name, value in query.kept.items()}}) for query in queries]
        given = torch.stack(flats).numpy()
        self.ratios = np.maximum(self.ratios, np.linalg.norm(given, axis=1) / self.setting.plan.sensitivity)
        # a canary that is in is in a step's sample with the rate of the release
        expected = round_.release.sample_rate * given
        self.information += expected @ expected.T / variance
        self.found += expected @ (output.numpy() - expected.sum(0) / 2) / variance

    @property
    def scores(self) -> NDArray[np.float64]:
        """The estimates of the coins."""
        return np.asarray(0.5 + np.linalg.solve(self.information, self.found))


def one_run(setting: Setting, count: int, root: int) -> list[Scored]:
    """Train once with about half of ``count`` canaries."""
    rows, coins = (np.random.default_rng(np.random.SeedSequence(root, spawn_key=(key,))) for key in (1, 2))
    x = unit_norm(rows.standard_normal((count, setting.task.dim)).astype(np.float32))
    y, inside = rows.integers(setting.task.classes, size=count), coins.random(count) < 0.5
    seeds = Seeds(root, root + 1)
    pool = CanaryPool(setting, x, y, inside, seeds)
    trained(setting, pool, seeds, pool.watch)
    scores = pool.scores
    return [Scored(i, bool(inside[i]), float(scores[i]), float(pool.ratios[i])) for i in range(count)]


def _latest(cohort: Cohort) -> Query:
    return clients_of(cohort).queries[-1]


def _apart(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> Tensors:
    return {name: one[name].double() - two[name].double() for name in two}
