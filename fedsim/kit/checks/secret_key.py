"""Check that seeded noise, which whoever guesses the seed can draw again, moves a training as far as noise of a secret key does."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.keystream import Keystream
from fedsim.kit.checks.fresh import in_fresh_processes
from fedsim.kit.checks.subject import CLIENTS, Subject, varied
from fedsim.kit.checks.training import drawn, fixed_random_states
from fedsim.kit.checks.verdict import Verdict, failed, idle, passed
from fedsim.methods.messages import Tensors
from fedsim.methods.registry import lookup
from fedsim.seeds import Purpose, Seeds
from fedsim.simulation import rounds
from fedsim.simulation.cohort import Cohort, LocalPool

ROUNDS = 2
"""Rounds of these trainings, where an algorithm has such a parameter."""
KEY = 2**255 + 1
SHARE = 0.1
"""Of what noise of a secret key moves, less than which honest seeded noise does not move."""
FIX = "use what Clients.add_noise returns and what the server receives as it is; draw Purpose.NOISE from no Seeds of your own"


def secret_key(subject: Subject) -> Verdict:
    """Noise that follows from the seed moves what is kept of a training about as far as noise that nobody can draw again."""
    if subject.plan is None:
        return idle("not private")
    short, module = varied(subject, rounds=ROUNDS), lookup(subject.trial.cell.algorithm).__module__
    seeded, secret = in_fresh_processes(noise_moves, [(short, Seeds(0)), (short, Seeds(0, KEY))], module)
    if secret == 0:
        return idle("noise changes nothing that is kept of a training")
    text = f"seeded noise moves what is kept of a training by {seeded:.3g} of its size, noise of a secret key by {secret:.3g}"
    return failed(f"{text}: the seeded noise is drawn again and taken off", FIX) if seeded < SHARE * secret else passed(text)


def noise_moves(subject: Subject, seeds: Seeds) -> float:
    """How far noise moves a training with otherwise the same streams: 0 not at all, 1 wholly; the median over tensors.

    For a process of its own, in which every stream of noise is silent afterwards.
    """
    noisy = _kept(subject, seeds)
    _silence()
    plain = _kept(subject, seeds)
    changes = [_change(value, plain[name]) for name, value in noisy.items() if name in plain and value.shape == plain[name].shape]
    # what noise does not reach says nothing
    return median([change for change in changes if change] or [0.0])


def _change(one: Tensor, two: Tensor) -> float:
    """The median change of those numbers that change, relative to their size: no number that noise makes huge decides."""
    moved = (one - two).abs() / (one.abs() + two.abs()).clamp_min(torch.finfo(torch.double).tiny)
    return float(moved[moved > 0].median()) if moved.any() else 0.0


def _kept(subject: Subject, seeds: Seeds) -> Tensors:
    """What is kept of a training and what its result says, in float64."""
    data = subject.data
    pool = LocalPool([Cohort(spec, data.x_train, data.y_train) for spec in subject.trial.cohorts(seeds)])
    with fixed_random_states([]):
        trained = rounds.to_the_end(rounds.train(subject.build(), pool, subject.plan, seeds))[1]
    shares = {} if trained.shares is None else {"label shares": torch.from_numpy(trained.shares)}
    kept = trained.state | shares | {"answers": drawn(trained.made, data, CLIENTS)}
    return {name: value.double() for name, value in kept.items() if value.is_floating_point()}


def _silence() -> None:
    """From now on a stream of noise gives none, whoever draws from it: the plan, and what an algorithm makes of it, is as it was."""
    given = Seeds.keystream

    def keystream(self: Seeds, purpose: Purpose, *which: Any, **named: Any) -> Keystream:
        stream = given(self, purpose, *which, **named)
        if purpose == Purpose.NOISE:
            stream.words = _largest  # type: ignore[method-assign]
        return stream

    Seeds.keystream = keystream  # type: ignore[method-assign]


def _largest(count: int) -> NDArray[np.uint32]:
    """The words of which :func:`fedsim.privacy.noise.fill_gaussian` makes 1e-9 of a standard deviation or less."""
    return np.full(count, 2**32 - 1, np.uint32)
