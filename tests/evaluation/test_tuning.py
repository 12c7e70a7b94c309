"""A tuned cell: which units are held out, what one unit changes, and what the search costs."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
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
from fedsim.privacy.plan import PrivacyPlan
from fedsim.seeds import Seeds
from fedsim.training.rounds import RoundRecord
from fedsim.training.state import Checkpoints
from fedsim.training.trial import Candidate, Outcome, Trial

SPACES: dict[str, Any] = {
    "dp-linear": {"clip": [0.5, 1.0], "rounds": [3, 6]},
    "dp-gaussian": {"radius": [0.5, 0.8]},
    "fedavg-linear": {"rounds": [1, 2]},
}


@dataclass
class Search:
    """A tuned cell and what running it gives."""

    trial: Trial
    data: Embeddings
    checkpoints: Checkpoints | None = None

    @cached_property
    def steps(self) -> list[RoundRecord | Outcome]:
        return list(run_tuned(self.trial, self.data, checkpoints=self.checkpoints))

    @property
    def records(self) -> list[Any]:
        return self.steps[:-1]

    @property
    def outcome(self) -> Outcome:
        outcome = self.steps[-1]
        assert isinstance(outcome, Outcome)
        return outcome

    @property
    def chosen(self) -> Candidate:
        assert self.outcome.chosen is not None
        return self.outcome.chosen

    @property
    def chosen_trial(self) -> Trial:
        return self.trial.of(self.chosen.params, None)

    @property
    def chosen_plan(self) -> PrivacyPlan:
        assert self.chosen.plan is not None
        return self.chosen.plan


def tuned(
    name: str = "dp-linear",
    trials: int = 4,
    **keys: Any,
) -> Search:
    entry = {"name": name, "tune": SPACES[name]}
    usual = {
        "tune": {"trials": trials, "held_out": 0.3},
        "epsilon": 8.0,
        "delta": 1e-3,
        "seeds": 3,
    }
    trial, data, _ = one_cell(entry, **(usual | keys))
    return Search(trial, data)


def training_rows(trial: Trial) -> set[int]:
    """The training rows that are left when a search has held out its units."""
    remaining, _ = held_out(trial, 0.3, Seeds(3))
    return set(np.concatenate(remaining.rows).tolist())


def test_about_a_third_of_the_units_is_held_out() -> None:
    trial = tuned().trial
    _, held = held_out(trial, 0.3, Seeds(3))
    everything = set(np.concatenate(trial.partition.rows).tolist())
    assert training_rows(trial) == everything - set(held.rows.tolist())
    assert 0.2 < len(held.rows) / len(everything) < 0.4


def test_one_more_row_changes_no_other_rows_side() -> None:
    trial = tuned().trial
    first, *others = trial.partition.rows
    longer = replace(
        trial.partition,
        rows=(np.append(first, 10**6), *others),
    )
    before = training_rows(trial)
    after = training_rows(replace(trial, partition=longer))
    assert after - {10**6} == before


def in_groups_of_three() -> Trial:
    trial = tuned().trial
    groups = tuple(np.arange(len(rows)) // 3 for rows in trial.partition.rows)
    return replace(
        trial,
        task=replace(trial.task, unit="group"),
        partition=replace(trial.partition, groups=groups),
    )


def test_a_held_out_group_weighs_one() -> None:
    grouped = in_groups_of_three()
    _, held = held_out(grouped, 0.3, Seeds(3))
    weights = Counter[tuple[int, int]]()
    for row, client, weight in zip(held.rows, held.clients, held.weights, strict=True):
        position = grouped.partition.rows[client].tolist().index(row)
        weights[client, position // 3] += weight
    assert len(weights) > 1
    assert list(weights.values()) == pytest.approx([1] * len(weights))


def test_groups_left_for_training_are_numbered_without_gaps() -> None:
    remaining, _ = held_out(in_groups_of_three(), 0.3, Seeds(3))
    for numbers in remaining.groups or ():
        assert set(numbers) == set(range(len(set(numbers))))


def test_a_held_out_example_weighs_one() -> None:
    _, held = held_out(tuned().trial, 0.3, Seeds(3))
    assert set(held.weights) == {1.0}


@pytest.mark.parametrize("name", ["dp-linear", "dp-gaussian"])
def test_all_trainings_and_scores_together_cost_the_cells_budget(name: str) -> None:
    search = tuned(name)
    outcome = search.outcome
    assert search.chosen in search.trial.candidates
    assert outcome.unaccounted == ""
    assert outcome.epsilon_spent == search.chosen_plan.epsilon_reached
    assert 0.99 * 8 <= search.chosen_plan.epsilon_reached <= 8
    releases = [mechanism.release for mechanism in outcome.mechanisms or ()]
    assert releases.count("score") == 1


def with_quieter_score(
    candidate: Candidate,
    share: float,
) -> Candidate:
    """The candidate with less noise on its score than planned."""
    assert candidate.plan is not None
    *training, score = candidate.plan.releases
    quieter = replace(
        score,
        relative_noise=share * score.relative_noise,
    )
    return replace(
        candidate,
        plan=replace(candidate.plan, releases=(*training, quieter)),
    )


@pytest.mark.parametrize(("share", "spent"), [(0.5, 9.0), (1e-9, 1e9)])
def test_scores_with_less_noise_than_planned_are_overspent(
    share: float,
    spent: float,
) -> None:
    search = tuned()
    weak = tuple(with_quieter_score(each, share) for each in search.trial.candidates)
    outcome = replace(search, trial=replace(search.trial, candidates=weak)).outcome
    assert outcome.epsilon_spent is not None
    assert outcome.epsilon_spent > spent


@pytest.fixture(scope="module")
def whole() -> Search:
    """A search with several trainings that nothing interrupts."""
    search = tuned(privacy={"noise": "seeded"})
    assert len({record.values["training"] for record in search.records}) > 1
    return search


def test_every_round_of_a_search_has_its_own_noise(whole: Search) -> None:
    assert len({record.values["noise"] for record in whole.records}) == len(whole.records)


@pytest.mark.parametrize("stop", [1, 5, 9])
def test_an_interrupted_cell_continues_with_what_it_drew(
    whole: Search,
    stop: int,
) -> None:
    checkpoints = Checkpoints(every=0.0)
    steps = run_tuned(
        whole.trial,
        whole.data,
        checkpoints=checkpoints,
    )
    before = [next(steps) for _ in range(stop)]
    steps.close()  # type: ignore[attr-defined]
    resumed = replace(
        whole,
        checkpoints=Checkpoints(checkpoints.content, every=0.0),
    )
    kept = before[: resumed.records[0].round]
    assert kept + resumed.records == whole.records
    assert replace(resumed.outcome, seconds=0) == replace(whole.outcome, seconds=0)
    for name, value in whole.outcome.state.items():
        assert torch.equal(resumed.outcome.state[name], value)


def test_a_free_search_trains_each_point_and_claims_no_theorem() -> None:
    prepared = small_cells(
        quick("dp-linear") | {"tune": {"clip": [0.01, 1.0]}},
        epsilon=8.0,
        tune={"curves": ["default", "free"]},
    )
    default, free = prepared.trials
    (data,) = prepared.data.values()
    search = Search(free, data)
    assert search.outcome.trials == 2
    assert search.chosen_plan.claim == "heuristic"
    assert search.chosen_plan.selection is None
    assert default.plan is not None
    assert search.outcome.epsilon_spent == default.plan.epsilon_reached


@pytest.mark.parametrize(
    ("name", "epsilon", "spent"), [("dp-linear", math.inf, math.inf), ("fedavg-linear", 8.0, None)]
)
def test_without_a_budget_scores_have_no_noise(
    name: str, epsilon: float, spent: float | None
) -> None:
    search = tuned(name, epsilon=epsilon)
    assert search.chosen in search.trial.candidates
    assert search.outcome.epsilon_spent == spent


@pytest.fixture(scope="module")
def gaussian() -> Search:
    return tuned("dp-gaussian", trials=1)


def predicted_right(
    search: Search,
    held: np.ndarray,
    others: np.ndarray,
) -> list[bool]:
    """Whether the chosen training gives held-out rows the label of the first training row."""
    x = np.concatenate([held, others]).astype(np.float32)
    y = np.full(len(x), search.data.y_train[0])
    rows = np.arange(len(held))
    held_rows = HeldOut(
        rows,
        np.zeros_like(rows),
        np.ones(len(rows)),
    )
    data = replace(search.data, x_train=x, y_train=y)
    return held_rows.correct(search.chosen_trial, search.outcome.state, data).tolist()


def rows_near_the_boundary(search: Search) -> np.ndarray:
    """Rows between a right and a wrong prediction, ever closer to where it changes."""
    x = search.data.x_train
    right = np.array(predicted_right(search, x, x[:0]))
    inside = x[right][0].astype(np.float64)
    outside = x[~right][0].astype(np.float64)
    lines = []
    for _ in range(6):
        line = inside + np.linspace(0, 1, 10)[:, None] * (outside - inside)
        change = predicted_right(search, line, x[:0]).index(False)
        inside = line[change - 1]
        outside = line[change]
        lines.append(line)
    return np.concatenate(lines)


def test_a_row_is_predicted_alike_alone_and_among_others(gaussian: Search) -> None:
    rows = rows_near_the_boundary(gaussian)
    nothing = rows[:0]
    alone = [predicted_right(gaussian, row[None], nothing)[0] for row in rows]
    assert predicted_right(gaussian, rows, nothing) == alone


def test_one_more_training_row_leaves_a_generators_score(gaussian: Search) -> None:
    rows = rows_near_the_boundary(gaussian)
    more = gaussian.data.x_train[:1]
    assert predicted_right(gaussian, rows, more) == predicted_right(gaussian, rows, more[:0])


@pytest.mark.parametrize("name", ["dp-linear", "dp-gaussian"])
def test_a_score_reads_no_rows_but_those_held_out(name: str) -> None:
    search = tuned(name, trials=1)
    trial = search.chosen_trial
    data = search.data
    _, held = held_out(search.trial, 0.3, Seeds(3))
    is_held = np.isin(np.arange(len(data.y_train)), held.rows)
    spoiled = replace(
        data,
        x_train=np.where(is_held[:, None], data.x_train, np.float32(np.nan)),
        y_train=np.where(is_held, data.y_train, -1),
        x_test=np.full_like(data.x_test, np.nan),
    )
    nobody = replace(
        trial.partition,
        rows=tuple(rows[:0] for rows in trial.partition.rows),
    )
    state = search.outcome.state
    expected = held.correct(trial, state, data)
    found = held.correct(
        replace(trial, partition=nobody),
        state,
        spoiled,
    )
    np.testing.assert_array_equal(found, expected)


def test_no_search_is_planned_where_single_messages_are_seen() -> None:
    trial = tuned("dp-gaussian").trial
    task = replace(trial.task, trust="silo")
    with pytest.raises(UserError, match="every training that tune compares"):
        plans_of(
            DPGaussian,
            trial.cell.params,
            trial.cell.tuning,
            task,
            8.0,
            1e-3,
        )
