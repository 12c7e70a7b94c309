"""The warm start's releases: what one example can change, and that they start the model where they should."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from cells import quick, small_cells

from algorithms.warm_start import SHARES
from fedsim.methods.messages import Tensors
from fedsim.seeds import Seeds
from fedsim.simulation.cohort import LocalPool, build_algorithm
from fedsim.simulation.trial import Outcome, local_pool, run_trial

NAMES = {"moments": "fedhypevae-warm", "client-moments": "fedhypevae-sites"}
PARAMS = {"code": 6, "latent": 16, "rounds": 3}


def without_row(pool: LocalPool, client: int, row: int) -> None:
    (cohort,) = pool.cohorts
    kept = torch.arange(len(cohort.clients.x[client])) != row
    for name in ("x", "y"):
        values = list(getattr(cohort.clients, name))
        values[client] = values[client][kept]
        setattr(cohort.clients, name, tuple(values))


def distance(a: Tensors, b: Tensors) -> float:
    return float(torch.cat([(a[name] - b[name]).flatten() for name in a]).norm())


@pytest.mark.parametrize("kind", SHARES)
def test_no_example_changes_a_release_by_more_than_the_clip_norm(kind: str) -> None:
    prepared = small_cells(quick(NAMES[kind], **PARAMS, clip=0.5), epsilon=float("inf"))
    (trial,), (data,) = prepared.trials, prepared.data.values()
    algorithm = build_algorithm(NAMES[kind], trial.cell.params, trial.task)
    trial = replace(trial, sizes=(4,))
    everyone, server, seen = local_pool(trial, data), algorithm.initial_server(Seeds(0)), []
    phases = algorithm.phases()
    for round_ in algorithm.schedule():
        phase = phases[round_.phase]
        if phase.release.main:
            break
        (whole,) = everyone.round(round_, phase.broadcast(server))
        for client, row in ((0, 0), (2, 3)):
            fewer: Any = local_pool(trial, data)
            without_row(fewer, client, row)
            (rest,) = fewer.round(round_, phase.broadcast(server))
            assert 0 < distance(whole.sums, rest.sums) <= 0.5 * (1 + 1e-5)
        phase.at_server(server, round_, whole.sums)
        seen.append(phase.release.name)
    assert seen == list(SHARES[kind])


def test_client_moments_start_each_client_at_its_own_features() -> None:
    shift = {"scheme": "feature-shift", "strength": 1.0}
    scores = {}
    for kind in SHARES:
        entry = quick(NAMES[kind], **PARAMS)
        evaluation = {"per_class": 60, "per_client": True}
        prepared = small_cells(entry, dataset="digits", partition=shift, epsilon=float("inf"), evaluation=evaluation)
        (trial,), (*_, data) = prepared.trials, prepared.data.values()
        *_, outcome = run_trial(trial, data)
        assert isinstance(outcome, Outcome)
        scores[kind] = outcome.scores["client_balanced_accuracy"]
    assert scores["client-moments"] > scores["moments"]


@pytest.mark.parametrize("trust", ["aggregate", "silo"])
def test_client_moments_spend_what_was_planned_whatever_the_packing(trust: str) -> None:
    prepared = small_cells(quick("fedhypevae-sites", **PARAMS), epsilon=4.0, trust=trust)
    (trial,), (data,) = prepared.trials, prepared.data.values()
    *one, first = run_trial(trial, data)
    *spread, second = run_trial(replace(trial, sizes=(2, 1, 1)), data)
    assert 0.99 * 4.0 <= first.epsilon_spent <= 4.0
    assert second.epsilon_spent == first.epsilon_spent
    assert [r.values["noise"] for r in one] == [r.values["noise"] for r in spread]
    assert one[-1].values["parameter_norm"] == pytest.approx(spread[-1].values["parameter_norm"], rel=1e-3)
