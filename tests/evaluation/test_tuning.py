"""A tuned cell: who is held out, what one of them changes, what is spent, and that it continues
with what it drew.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cells import one_cell, quick, small_cells

from baselines.dp_gaussian import DPGaussian
from fedsim.data.embeddings import Embeddings
from fedsim.errors import UserError
from fedsim.evaluation.plans import plans_of
from fedsim.evaluation.tuning import HeldOut, held_out, run_tuned
from fedsim.seeds import Seeds
from fedsim.training.rounds import RoundRecord
from fedsim.training.state import Checkpoints
from fedsim.training.trial import Outcome, Trial

SPACE = {"clip": [0.5, 1.0], "rounds": [3, 6]}


def tuned(name: str = "dp-linear", space: Any = None, **keys: Any) -> tuple[Trial, Embeddings]:
    how = {"trials": 4, "held_out": 0.3} | keys.pop("tune", {})
    entry = {"name": name, "tune": SPACE if space is None else space}
    trial, data, _ = one_cell(
        entry, **{"tune": how, "epsilon": 8.0, "delta": 1e-3, "seeds": 3} | keys
    )
    return trial, data


def ended(steps: Iterator[RoundRecord | Outcome]) -> tuple[list[RoundRecord], Outcome]:
    *records, outcome = steps
    assert isinstance(outcome, Outcome)
    return records, outcome  # type: ignore[return-value]


def test_units_are_held_out_by_coins_that_no_row_decides() -> None:
    trial, _ = tuned()
    kept, held = held_out(trial, 0.3, Seeds(3))
    assert sorted([*np.concatenate(kept.rows), *held.rows]) == sorted(
        np.concatenate(trial.partition.rows)
    )
    assert 0.2 < len(held.rows) / trial.train_rows < 0.4
    first, *others = trial.partition.rows
    longer = replace(
        trial, partition=replace(trial.partition, rows=(np.append(first, 10**6), *others))
    )
    before, after = (
        set(np.concatenate(held_out(one, 0.3, Seeds(3))[0].rows)) for one in (trial, longer)
    )
    assert after - before <= {10**6}
    assert before <= after


def test_one_unit_changes_the_score_by_at_most_one_a_group_too() -> None:
    trial, _ = tuned()
    groups = tuple(np.arange(len(rows)) // 3 for rows in trial.partition.rows)
    grouped = replace(
        trial,
        task=replace(trial.task, unit="group"),
        partition=replace(trial.partition, groups=groups),
    )
    kept, held = held_out(grouped, 0.3, Seeds(3))
    place = {
        row: (client, group)
        for client, own in enumerate(groups)
        for row, group in zip(trial.partition.rows[client], own, strict=True)
    }
    units = [place[row] for row in held.rows]
    sums = Counter[tuple[int, int]]()
    for unit, weight in zip(units, held.weights, strict=True):
        sums[unit] += weight
    assert sums
    assert all(total == pytest.approx(1) for total in sums.values())
    assert all((np.diff(own) <= 1).all() and own[0] == 0 for own in kept.groups or ())
    assert (held_out(trial, 0.3, Seeds(3))[1].weights == 1).all()


@pytest.mark.parametrize("name", ["dp-linear", "dp-gaussian"])
def test_all_trainings_and_scores_together_cost_the_cells_budget(name: str) -> None:
    trial, data = tuned(name, SPACE if name == "dp-linear" else {"radius": [0.5, 0.8]})
    _, outcome = ended(run_tuned(trial, data))
    assert outcome.chosen in trial.candidates
    assert outcome.unaccounted == ""
    assert outcome.epsilon_spent is not None
    assert 0.99 * 8 <= outcome.epsilon_spent <= 8
    plan = outcome.chosen.plan  # type: ignore[union-attr]
    assert plan is not None
    assert outcome.epsilon_spent == plan.epsilon_reached
    assert [tally.release for tally in outcome.mechanisms or ()].count("score") == 1


@pytest.mark.parametrize(("share", "spent"), [(0.5, 9.0), (1e-9, 1e9)])
def test_scores_with_less_noise_than_planned_are_overspent(share: float, spent: float) -> None:
    trial, data = tuned()

    def quieter(plan: Any) -> Any:
        *own, score = plan.releases
        return replace(
            plan, releases=(*own, replace(score, relative_noise=share * score.relative_noise))
        )

    weak = tuple(replace(candidate, plan=quieter(candidate.plan)) for candidate in trial.candidates)
    _, outcome = ended(run_tuned(replace(trial, candidates=weak), data))
    assert outcome.epsilon_spent is not None
    assert outcome.epsilon_spent > spent


def test_a_cell_that_is_interrupted_anywhere_continues_with_what_it_drew() -> None:
    trial, data = tuned(privacy={"noise": "seeded"})
    records, whole = ended(run_tuned(trial, data))
    assert len({record.values["training"] for record in records}) > 1
    assert len({record.values["noise"] for record in records}) == len(records)
    for stop in range(1, len(records), 4):
        steps = run_tuned(trial, data, checkpoints=(kept := Checkpoints(every=0.0)))
        before = [next(steps) for _ in range(stop)]
        steps.close()  # type: ignore[attr-defined]
        rest, outcome = ended(
            run_tuned(trial, data, checkpoints=Checkpoints(kept.content, every=0.0))
        )
        assert [*before[: rest[0].round], *rest] == records
        assert replace(outcome, seconds=0) == replace(whole, seconds=0)
        assert all(torch.equal(outcome.state[name], value) for name, value in whole.state.items())


def test_a_free_search_trains_each_point_on_all_rows_and_claims_no_theorem() -> None:
    prepared = small_cells(
        quick("dp-linear") | {"tune": {"clip": [0.01, 1.0]}},
        epsilon=8.0,
        tune={"curves": ["default", "free"]},
    )
    default, free = prepared.trials
    (data,) = prepared.data.values()
    _, outcome = ended(run_tuned(free, data))
    assert (outcome.trials, free.cell.tuning and free.cell.tuning.free) == (2, True)
    assert outcome.chosen is not None
    assert outcome.chosen.plan is not None
    assert outcome.chosen.plan.claim == "heuristic"
    assert default.plan is not None
    assert (outcome.epsilon_spent, outcome.chosen.plan.selection) == (
        default.plan.epsilon_reached,
        None,
    )


def test_without_a_budget_scores_have_no_noise() -> None:
    for name, keys in (("dp-linear", {"epsilon": math.inf}), ("fedavg-linear", {})):
        trial, data = tuned(name, {"rounds": [1, 2]}, **keys)
        _, outcome = ended(run_tuned(trial, data))
        assert outcome.chosen in trial.candidates
        assert outcome.epsilon_spent in (None, math.inf)


def test_a_row_is_predicted_alike_alone_and_among_others_a_last_bit_from_another_class() -> None:
    trial, data = tuned("dp-gaussian", {"radius": [0.5, 0.8]}, tune={"trials": 1})
    _, outcome = ended(run_tuned(trial, data))
    assert outcome.chosen is not None
    one = trial.of(outcome.chosen.params, None)
    label = data.y_train[0]

    def of_label(x: np.ndarray) -> np.ndarray:
        rows = np.arange(len(x))
        alike = replace(data, x_train=x.astype(np.float32), y_train=np.full(len(x), label))
        return HeldOut(rows, 0 * rows, np.ones(len(x))).correct(one, outcome.state, alike)

    predicted = of_label(data.x_train)
    outside = data.x_train[~predicted][:3].astype(float)
    inside = np.broadcast_to(data.x_train[predicted][0], outside.shape)
    each = np.arange(3)
    for _ in range(4):
        lines = inside[:, None] + np.linspace(0, 1, 60)[:, None] * (outside - inside)[:, None]
        change = of_label(lines.reshape(-1, data.dim)).reshape(3, 60).argmin(1)
        inside = lines[each, change - 1]
        outside = lines[each, change]
    close = np.concatenate([inside, outside])
    assert of_label(close).tolist() == [bool(of_label(row[None])[0]) for row in close]


def test_one_more_training_row_leaves_a_generators_score() -> None:
    trial, data = tuned("dp-gaussian", {"radius": [0.5, 0.8]}, tune={"trials": 1})
    _, outcome = ended(run_tuned(trial, data))
    assert outcome.chosen is not None
    chosen = trial.of(outcome.chosen.params, None)
    label = data.y_train[0]

    def predicted_right(held: np.ndarray, other_rows: int) -> np.ndarray:
        x_train = np.concatenate([held, data.x_train[:other_rows]]).astype(np.float32)
        y_train = np.full(len(x_train), label)
        few_rows = replace(data, x_train=x_train, y_train=y_train)
        rows = np.arange(len(held))
        held_rows = HeldOut(rows, np.zeros_like(rows), np.ones(len(rows)))
        return held_rows.correct(chosen, outcome.state, few_rows)

    # ten rows ever closer to where the prediction changes: the least other probe shows in them
    right = predicted_right(data.x_train, 0)
    inside = data.x_train[right][0].astype(np.float64)
    outside = data.x_train[~right][0].astype(np.float64)
    for _ in range(6):
        line = inside + np.linspace(0, 1, 10)[:, None] * (outside - inside)
        right = predicted_right(line, 0)
        change = int(right.argmin())
        assert predicted_right(line, 1).tolist() == right.tolist()
        inside = line[change - 1]
        outside = line[change]


@pytest.mark.parametrize(
    ("name", "space"), [("dp-linear", SPACE), ("dp-gaussian", {"radius": [0.5, 0.8]})]
)
def test_a_score_reads_no_rows_but_those_held_out(name: str, space: Any) -> None:
    trial, data = tuned(name, space, tune={"trials": 1})
    _, outcome = ended(run_tuned(trial, data))
    assert outcome.chosen is not None
    chosen = trial.of(outcome.chosen.params, None)
    _, held = held_out(trial, 0.3, Seeds(3))
    other_rows = np.setdiff1d(np.arange(len(data.y_train)), held.rows)
    x_train = data.x_train.copy()
    x_train[other_rows] = np.nan
    y_train = data.y_train.copy()
    y_train[other_rows] = -1
    spoiled = replace(data, x_train=x_train, y_train=y_train, x_test=data.x_test * np.nan)
    empty = replace(trial.partition, rows=tuple(rows[:0] for rows in trial.partition.rows))
    expected = held.correct(chosen, outcome.state, data)
    found = held.correct(replace(chosen, partition=empty), outcome.state, spoiled)
    assert found.tolist() == expected.tolist()


def test_no_search_is_planned_where_single_messages_are_seen() -> None:
    trial, _ = tuned("dp-gaussian", {"radius": [0.5, 1.0]})
    with pytest.raises(UserError, match="every training would be seen"):
        plans_of(
            DPGaussian,
            trial.cell.params,
            trial.cell.tuning,
            replace(trial.task, trust="silo"),
            8.0,
            1e-3,
        )
