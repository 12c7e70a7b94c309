"""The black-box audit: an adversary who sees what is released alone, synthetic rows or a classifier, looks for rows of a real data set.

Trainings differ in their seed and in which rows they have, each by a fair coin of its own. In the first one the coins make an audit in one
run (Steinke, Nasr & Jagielski 2023): guesses from scores bound epsilon. All of them are each other's shadows (LiRA).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from fedsim.data.sources.load import load
from fedsim.data.sources.spec import DatasetSpec
from fedsim.errors import UserError
from fedsim.evaluation.judge import synthesise
from fedsim.evidence.audit.membership import Bools, Floats, Membership, likelihood_ratios, membership
from fedsim.evidence.audit.one_run import FEWEST
from fedsim.evidence.audit.setting import plan_of
from fedsim.methods.messages import Task
from fedsim.methods.products import Product, is_classifier, is_personal, own
from fedsim.privacy.plan import Trust, Unit
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool, build_algorithm
from fedsim.training.rounds import to_the_end, train

PER_CLASS = 200
CLIENTS = 4
TRAININGS = 6
LIRA = "LiRA"

Rows = NDArray[np.float32]
Labels = NDArray[np.int64]


def scores_of_rows(made: Product, classes: int, x: Rows, y: Labels, seeds: Seeds) -> dict[str, Floats]:
    """By what an adversary may score rows: the higher, the likelier they were trained on."""
    shared = own(made, 0) if is_classifier(made) and is_personal(made) else made
    if is_classifier(shared):
        with torch.no_grad():
            told = shared.probabilities(torch.from_numpy(x)).double().numpy()
        chosen = np.clip(told[np.arange(len(y)), y], 1e-12, 1 - 1e-12)
        return {"confidence": np.log(chosen) - np.log1p(-chosen)}
    return scores_of_synthetic(*synthesise(shared, classes, PER_CLASS, seeds), x, y)


def scores_of_synthetic(synthetic: Rows, labels: Labels, x: Rows, y: Labels) -> dict[str, Floats]:
    """Nearness to the nearest synthetic row of one's label, and one's likelihood under a Gaussian of those."""
    near, likely = np.zeros(len(x)), np.zeros(len(x))
    for label in np.unique(y):
        rows, asked = synthetic[labels == label].astype(float), y == label
        near[asked] = -cdist(x[asked].astype(float), rows).min(1)
        centred = rows - rows.mean(0)
        covariance = centred.T @ centred / len(rows)
        # a little of a ball, so that few rows have a density in many dimensions
        covariance += (0.1 * np.trace(covariance) / len(covariance) + 1e-9) * np.eye(len(covariance))
        away = x[asked] - rows.mean(0)
        likely[asked] = -0.5 * np.einsum("nd,nd->n", away @ np.linalg.inv(covariance), away) - 0.5 * np.linalg.slogdet(covariance)[1]
    return {"likelihood": likely, "nearest synthetic row": near}


class BlackBox:
    """Trainings on digits, in each of which some test rows are, by coins.

    Args:
        algorithm: as a grid gives it.
        params: all its parameters.
        unit: what the claim protects.
        trust: who may see what.
        epsilon: the claim; inf without noise, None where it has no meaning.
        delta: of the claim.
        canaries: rows that come and go.

    Raises:
        UserError: too few canaries, or the algorithm has no plan for the claim.
    """

    def __init__(
        self, algorithm: str, params: Mapping[str, Any], unit: Unit, trust: Trust, epsilon: float | None, delta: float, canaries: int
    ) -> None:
        data = load(DatasetSpec(name="digits", limit=max(400, 2 * canaries)))
        if not FEWEST <= canaries <= len(data.x_test):
            what = f"{canaries} rows are too {'few for any bound in one run' if canaries < FEWEST else 'many'}"
            raise UserError("pairs", what, f"give {FEWEST} to {len(data.x_test)}")
        self.algorithm, self.params, self.data = algorithm, dict(params), data
        self.task = Task(data.dim, data.classes, CLIENTS, unit, trust)
        self.plan = plan_of(algorithm, self.params, self.task, epsilon, delta)
        self.x, self.y = data.x_test[:canaries], data.y_test[:canaries]

    def coins(self, number: int) -> Bools:
        """Which canaries a training has."""
        return np.random.default_rng(np.random.SeedSequence(number, spawn_key=(3,))).random(len(self.y)) < 0.5

    def line(self, number: int) -> dict[str, Any]:
        """Train once; every canary's scores."""
        inside = self.coins(number)
        x, y = np.concatenate([self.data.x_train, self.x[inside]]), np.concatenate([self.data.y_train, self.y[inside]])
        rows = tuple(np.arange(client, len(x), CLIENTS) for client in range(CLIENTS))
        seeds = Seeds(number)
        # a claim for groups is one for groups of a single row, too
        groups = tuple(np.arange(len(own)) for own in rows) if self.task.unit == "group" else None
        spec = CohortSpec(self.algorithm, self.params, self.task, self.plan, seeds, tuple(range(CLIENTS)), rows, groups)
        steps = train(build_algorithm(self.algorithm, self.params, self.task), LocalPool([Cohort(spec, x, y)]), self.plan, seeds)
        _, trained = to_the_end(steps)
        return {"pair": number, "scores": scores_of_rows(trained.made, self.task.classes, self.x, self.y, seeds)}

    def outcome(self, lines: list[dict[str, Any]]) -> Iterator[tuple[str, Floats, Membership]]:
        """Of each way to score: its name, the first training's scores, and what it and LiRA on it tell."""
        inside = np.stack([self.coins(line["pair"]) for line in lines])
        for name in lines[0]["scores"]:
            scores = np.stack([np.asarray(line["scores"][name], float) for line in lines])
            yield name, scores[0], membership(name, scores, inside)
            if len(lines) > 2:
                yield f"{LIRA} by {name}", scores[0], membership(f"{LIRA} by {name}", likelihood_ratios(scores, inside), inside)
