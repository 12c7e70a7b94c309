"""The audit in one training: many canaries, each in it by a fair coin of its own (Steinke, Nasr & Jagielski 2023, arXiv 2305.08846).

For DP-SGD with one step a round. An adversary who sees every noisy sum, and knows each canary's clipped gradient at the round's model,
estimates all coins together by least squares (the linear estimate of least mean square error, coins having mean and variance 1/2 and 1/4),
and guesses ``in`` for the canaries with the highest estimates and ``out`` for those with the lowest. Canaries hide each other, so the
bound is weaker than that of many trainings; it costs one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedsim.data.normalise import unit_norm
from fedsim.errors import UserError
from fedsim.evidence.audit.observed import Heard, Member, flat, members_of, train_in
from fedsim.evidence.audit.setting import Setting
from fedsim.evidence.worlds import Query
from fedsim.methods.dp_sgd import DPSGD
from fedsim.methods.messages import Round, Tensors
from fedsim.methods.parameters import add_in_order
from fedsim.seeds import Seeds

FEWEST_CANARIES = 10
"""Canaries below which nothing is said."""
MANY_DIM = 256
"""Dimensions where many canaries are in one training, so that they stand apart."""


@dataclass(frozen=True)
class Scored:
    """One canary.

    Attributes:
        pair: its number, as in a pair's line.
        inside: whether it was in the training.
        score: the estimate of that.
        ratio: the most that it adds to a step, in units of the claimed sensitivity.
    """

    pair: int
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
        raise UserError(f"algorithm {setting.algorithm}", what, "give `attack` white-box")
    if count < FEWEST_CANARIES:
        raise UserError("pairs", f"{count} canaries are too few for any bound in one run", f"give {FEWEST_CANARIES} or more")


def one_run(setting: Setting, count: int, root: int) -> list[Scored]:
    """Train once with about half of ``count`` canaries, beside that without them, and with each of them as all that its client has."""
    rows, coins = (np.random.default_rng(np.random.SeedSequence(root, spawn_key=(key,))) for key in (1, 2))
    x = unit_norm(rows.standard_normal((count, setting.task.dim)).astype(np.float32))
    y, inside = rows.integers(setting.task.classes, size=count), coins.random(count) < 0.5
    seeds, last = Seeds(root, root + 1), setting.canary_client
    *others, own = members_of(setting, None)
    present = Member(last, np.concatenate([own.x, x[inside]]), np.concatenate([own.y, y[inside]]))
    live = train_in(setting, seeds, [*others, present])
    without = train_in(setting, seeds, [*others, own], live)
    alone = (train_in(setting, seeds, [Member(last, x[i : i + 1], y[i : i + 1], canary=1, always=True)], live) for i in range(count))
    by_canary = ([_unnoised(_query(heard, round_)).numpy() for round_, _ in heard.noisy] for heard in alone)
    given = [np.stack(parts) for parts in zip(*by_canary, strict=True)]
    scores = _scores(setting, live, without, given)
    ratios = np.max([np.linalg.norm(added, axis=1) for added in given], axis=0) / setting.plan.sensitivity
    return [Scored(i, bool(inside[i]), float(scores[i]), float(ratios[i])) for i in range(count)]


def _scores(setting: Setting, live: Heard, without: Heard, given: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The estimates of the coins, from what canaries add in all rounds, ``[canaries, numbers]`` each."""
    canaries = len(given[0])
    information, weighted = 4 * np.eye(canaries), np.zeros(canaries)
    for (round_, noisy), added in zip(live.noisy, given, strict=True):
        query, base = _query(live, round_), _query(without, round_)
        silo = setting.task.trust == "silo"
        seen = _apart(query.noised.sent, base.sent) if silo else _apart(noisy, add_in_order(without.sums(round_)))
        output = flat({**seen, **{f"kept {name}": value for name, value in _apart(query.noised.kept, base.kept).items()}})
        variance = setting.plan.noise_std(round_.release.name) ** 2
        # a canary that is in is in a step's sample with the rate of the release
        expected = round_.release.sample_rate * added
        information += expected @ expected.T / variance
        weighted += expected @ (output.numpy() - expected.sum(0) / 2) / variance
    return np.asarray(0.5 + np.linalg.solve(information, weighted))


def _query(heard: Heard, round_: Round) -> Query:
    """The query of the canaries' client in its only step of a round."""
    return heard.tapes[-1].queries_of(round_.number)[-1]


def _unnoised(query: Query) -> Tensor:
    return flat({**query.sent, **{f"kept {name}": value for name, value in query.kept.items()}})


def _apart(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> Tensors:
    return {name: one[name].double() - two[name].double() for name in two}
