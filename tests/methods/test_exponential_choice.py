"""Choices by an exponential mechanism, through the real rounds."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from baselines.dp_gaussian import GaussianGenerator
from fedsim.errors import UserError
from fedsim.methods.algorithm import Params, solved_plan
from fedsim.methods.messages import Task
from fedsim.methods.one_shot import Choice, OneShot, Statistic
from fedsim.plugins.registry import lookup, register
from fedsim.privacy.statistics.outer_products import OuterProduct
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool
from fedsim.training.rounds import to_the_end, train

TASK = Task(dim=3, classes=2, clients=2)
X = np.eye(3, dtype=np.float32)[[0, 0, 1, 2, 2, 2]]
Y = np.array([0, 0, 0, 1, 1, 0])
ROWS = (np.array([0, 1, 2]), np.array([3, 4, 5]))


@register("largest-feature")
class LargestFeature(OneShot):
    """Of every class the feature that most of its rows have, and then the number of rows."""

    Params = Params

    def statistics(self):
        count = Statistic(
            "rows", 0.5, {"rows": 1.0}, lambda rows, _: {"rows": OuterProduct(rows.x.new_ones(len(rows.x), 1), rows.x[:, :1] * 0 + 1)}, keep
        )
        return (Choice("feature", 0.5, lambda rows, broadcast: 5 * rows.x, self.receive, steps=2), count)

    def generator(self, server):
        return GaussianGenerator(torch.zeros(2, 3), torch.eye(3)[:1], torch.eye(1), 1.0)

    def receive(self, server, chosen):
        server.tensors[f"chosen{len(server.tensors)}"] = chosen


def keep(server, sums, std):
    server.tensors |= sums


def trained(epsilon, task=TASK, groups=None):
    algorithm, seen = LargestFeature(Params(), task), []
    plan, seeds = solved_plan(algorithm, epsilon, 1e-4), Seeds(0)
    spec = CohortSpec("largest-feature", {}, task, plan, seeds, (0, 1), ROWS, groups)
    pool = LocalPool([Cohort(spec, X, Y)])
    records, outcome = to_the_end(train(algorithm, pool, plan, seeds, watch=lambda *round_: seen.append(round_)))
    return plan, records, outcome, [sums for _, sums in seen], pool


def test_only_the_numbers_of_the_largest_scores_leave_the_round() -> None:
    plan, records, outcome, seen, _ = trained(2.0)
    for sums in seen[:2]:
        assert sums.keys() == {"scores"}
        assert (sums["scores"].dtype, sums["scores"].shape) == (torch.int64, (2,))
    assert seen[2]["rows"].dtype == torch.float32
    assert {value.dtype for name, value in outcome.state.items() if "chosen" in name} == {torch.int64}
    assert {name for record in records[:2] for name in record.values} == {
        "release",
        "main",
        "sampled",
        "noise",
        "signal_norm",
        "noise_norm",
    }
    assert not outcome.ledger.unaccounted(plan, 2)
    ran = {(tally.release, tally.mechanism, tally.count) for tally in outcome.ledger.entries}
    assert ran == {("feature", "exponential", 2), ("rows", "gaussian", 1)}
    assert outcome.ledger.epsilon(1e-4) == (plan.epsilon_reached, "pld")


def test_without_noise_it_is_the_largest_score() -> None:
    assert trained(math.inf)[3][0]["scores"].tolist() == [0, 2]


def test_a_row_adds_at_most_1_to_its_class_and_a_groups_rows_share_that() -> None:
    algorithm = LargestFeature(Params(), TASK)
    phase, round_ = algorithm.phases()[0], next(algorithm.schedule())
    for groups, expected in ((None, [[2, 1, 1], [0, 0, 2]]), ((np.array([0, 0, 1]), np.zeros(3, int)), [[1, 1, 1 / 3], [0, 0, 2 / 3]])):
        task = TASK if groups is None else replace(TASK, unit="group")
        pool = trained(math.inf, task, groups)[4]
        clients = pool.cohorts[0].clients
        clients.steps, clients.ran.steps = None, []
        torch.testing.assert_close(phase.at_clients(clients, round_, {}).sums["scores"], torch.tensor(expected).double())


def test_one_client_cannot_choose_by_itself() -> None:
    with pytest.raises(UserError, match="trust: aggregate"):
        solved_plan(lookup("largest-feature")(Params(), replace(TASK, trust="silo")), 1.0, 1e-4)
