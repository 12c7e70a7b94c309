"""Statistics whose units are clients: what one client can change, and what counts of several releases are counted in."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cells import SHIPPED, one_cell, quick

from fedsim.data.embeddings import Embeddings
from fedsim.errors import UserError
from fedsim.methods.clients import Clients
from fedsim.methods.messages import Round, Server, Task, Tensors
from fedsim.methods.one_shot import OneShot, Rows, Statistic, statistic_phase
from fedsim.methods.phase import rounds_of
from fedsim.plugins.registry import lookup
from fedsim.privacy.noise import gaussian
from fedsim.privacy.plan import calibrate
from fedsim.privacy.statistics import moments
from fedsim.seeds import Purpose, Seeds
from fedsim.training.cohort import Cohort, LocalPool
from fedsim.training.rounds import to_the_end, train
from fedsim.training.trial import Outcome, Trial, local_pool, run_trial

ONE_SHOT = [name for name in SHIPPED if issubclass(lookup(name), OneShot) and "client" in lookup(name).units]
"""Algorithms of statistics."""
WITH_STATISTICS = [*ONE_SHOT, "dp-linear", "dp-feature-covariance", "fedhypevae"]


@pytest.mark.parametrize("name", ONE_SHOT)
def test_a_client_of_any_rows_changes_all_sums_of_a_release_by_at_most_the_sensitivity(name: str) -> None:
    """By brute force: the same broadcast, with the client and without, where it has few rows, many, the same one many times, or none."""
    trial, data, algorithm = one_cell(name, unit="client", epsilon=4.0)
    assert trial.plan is not None
    assert (trial.plan.unit, trial.plan.claim, algorithm.clips_clients()) == ("client", "proved", True)
    broadcasts = list[tuple[Round, Tensors]]()

    def noting(*args: Any) -> LocalPool:
        pool = local_pool(*args)
        compute = pool.round
        pool.round = lambda *given: broadcasts.append(given) or compute(*given)  # type: ignore[method-assign,func-returns-value]
        return pool

    list(run_trial(trial, data, noting))
    held = trial.partition.rows
    worst = int(np.abs(data.x_train - data.x_train.mean(0)).sum(1).argmax())
    for own in (held[0][:1], held[0], np.concatenate(held), np.full(300, worst), held[0][:0]):
        with_it, without = (cohort(trial, data, (rows, *held[1:])) for rows in (own, held[0][:0]))
        for round_, broadcast in broadcasts:
            one, other = with_it.round(round_, broadcast).sums, without.round(round_, broadcast).sums
            change = float(torch.stack([(one[key] - other[key]).norm() for key in one]).norm())
            assert change <= trial.plan.sensitivity * (1 + 1e-5)
            assert (change > 0.1) == (len(own) > 0), round_.release.name


def cohort(trial: Trial, data: Embeddings, rows: tuple[np.ndarray, ...]) -> Cohort:
    (spec,) = replace(trial, partition=replace(trial.partition, rows=rows), sizes=(len(rows),)).cohorts()
    return Cohort(spec, data.x_train, data.y_train)


@pytest.mark.parametrize("name", WITH_STATISTICS)
def test_a_release_of_statistics_is_paid_for_where_clients_are_units(name: str) -> None:
    trial, data, _ = one_cell(name, unit="client", epsilon=4.0)
    *_, outcome = run_trial(trial, data)
    assert trial.plan is not None
    assert isinstance(outcome, Outcome)
    assert "mean" in [release.name for release in trial.plan.releases]
    assert not outcome.unaccounted


def test_rows_of_a_client_and_label_count_as_one_and_a_cohort_may_have_none() -> None:
    x, y, client = torch.eye(4), torch.tensor([0, 0, 1, 0]), torch.tensor([0, 0, 0, 1])
    found = Rows(x, y, client).by_label(moments.class_mean_products(x, y, 2), 2)["class_sums"]
    torch.testing.assert_close(found.left.T @ found.right, torch.tensor([[0.5, 0.5, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]]))
    none = Rows(x[:0], y[:0], client[:0])
    assert none.by_label(moments.mean_products(none.x), 2)["sum"].left.shape == (0, 1)


def test_label_shares_are_not_read_off_clients() -> None:
    for unit, released in (("example", True), ("client", False)):
        trial, data, algorithm = one_cell("dp-gaussian", unit=unit, epsilon=4.0)
        _, trained = to_the_end(train(algorithm, local_pool(trial, data), trial.plan, Seeds(0)))
        assert (trained.shares is not None) == released


def test_without_noise_every_release_counts_what_clients_there_are() -> None:
    """Clients of 1 to 40 rows are clipped by other factors in every release; their rows' weights add up to the number of clients."""
    counts = []

    def receive(server: Server, sums: Tensors, std: Mapping[str, float]) -> None:
        counts.append(sums["class_counts"][:, 0])

    stream = torch.Generator().manual_seed(0)
    sizes = (1, 4, 40, 7)
    x = tuple(torch.nn.functional.normalize(torch.randn(size, 6, generator=stream), dim=1) for size in sizes)
    y = tuple(torch.randint(3, (size,), generator=stream) for size in sizes)
    clients, task = Clients((0, 1, 2, 3), x, y, Seeds(0), None, torch.nn.Module()), Task(6, 3, 4, unit="client")
    for weights in ({"class_sums": 1.0, "class_counts": 0.15}, {"class_sums": 0.1, "class_counts": 1.0}):
        statistic = Statistic("means", 1.0, weights, lambda rows, broadcast: moments.class_mean_products(rows.x, rows.y, 3), receive)
        phase = statistic_phase(statistic, 1.0, task, lambda server: {})
        round_ = next(rounds_of([phase]))
        total = phase.at_clients(clients, round_, {}).sums
        phase.at_server(Server(torch.nn.Module(), Seeds(0)), round_, total)
    for found in counts:
        assert float(found.sum()) == pytest.approx(4.0, rel=1e-5)


def test_noise_is_scaled_as_the_sums_are() -> None:
    received: dict[str, Tensors | Mapping[str, float]] = {}
    statistic = Statistic(
        "sum", 1.0, {"sum": 1.0}, lambda rows, broadcast: {}, lambda server, sums, std: received.update(sums=sums, std=std)
    )
    phase = statistic_phase(statistic, 1.0, Task(3, 2, 50, unit="client"), lambda server: {})
    plan = calibrate(
        epsilon=2.0,
        delta=1e-4,
        releases=(phase.release,),
        unit="client",
        trust="aggregate",
        scope="joint",
        claim="proved",
        clip=1.0,
        sensitivity=1.0,
    )
    noise = gaussian({"sum": (40_000,), "row_count": (1, 1)}, plan.noise_std("sum"), Seeds(0).keystream(Purpose.NOISE, 0)).parts
    phase.at_server(Server(torch.nn.Module(), Seeds(0), plan=plan), next(rounds_of([phase])), noise | {"row_count": torch.tensor([[20.0]])})
    assert float(received["sums"]["sum"].std()) == pytest.approx(received["std"]["sum"], rel=0.02)
    assert received["std"]["sum"] < plan.noise_std("sum")


def test_a_method_for_single_clients_refuses_them_as_units() -> None:
    with pytest.raises(UserError, match=r"does not support 'client'; supported: example, group"):
        one_cell(quick("fedhypevae-sites"), unit="client", epsilon=4.0)
