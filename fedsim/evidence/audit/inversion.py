"""Gradient inversion: an honest-but-curious server looks for a client's rows in one message (Zhu et al. 2019, arXiv 1906.08935).

The server knows the model, the labels, the client's draws but for the noise, and the law p of all other clients' rows: a Gaussian about
each class's mean. Of rows x whose gradient is f(x) by the method's own loss and clip, it takes those that minimise::

    |m - a f(x)|^2 / (2 s^2) - log p(x | y)

m being the message, and s^2 what f leaves unexplained, noise included, of one that the server computes itself for the class means. a is 1
for a gradient. An update of local steps is taken for one step along the gradient, of unknown length: a is the best within a factor of 2 of
that message's, so that the fit is by the cosine (Geiping et al. 2020, arXiv 2003.14053). How much of the first term to believe is tried on
an update of rows drawn from p. Where m says nothing, the class means are the minimum: the guess without data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from fedsim.data.embeddings import Embeddings
from fedsim.data.public import PublicRows
from fedsim.errors import UserError
from fedsim.evidence.audit.audit import Append, Count, Reached, key, with_missing
from fedsim.evidence.audit.setting import Labels, Rows, plan_of
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.clients import Clients
from fedsim.methods.coordinates import Coordinates
from fedsim.methods.dp_sgd import DPSGD, RELEASE
from fedsim.methods.local_dp_sgd import LOCAL_STEPS_RELEASE, LocalDPSGD
from fedsim.methods.local_training import UPDATES_RELEASE, LocalTraining
from fedsim.methods.messages import Message, Round, Task, Tensors
from fedsim.methods.parameters import load_parameters, local_names
from fedsim.methods.returns import loss_parts
from fedsim.plugins.code_hash import harness_hash
from fedsim.plugins.registry import lookup
from fedsim.privacy.clipping import Norms, clipped_sum
from fedsim.privacy.plan import PrivacyPlan, Trust, Unit
from fedsim.seeds import Seeds
from fedsim.training.cohort import Cohort, CohortSpec, LocalPool, build_algorithm
from fedsim.training.rounds import train
from fedsim.training.state import copied
from fedsim.words import number

if TYPE_CHECKING:
    from torch.nn import Module

    from fedsim.batch import Batch

BATCH_ROWS = (1, 4, 16, 64)
"""Rows of an attacked client, all of which are in its message."""
INVERSION_CLIENTS = 10
"""In the federation, of which one is attacked."""
RECOVERED_COSINE = 0.95
"""Cosine above which a row counts as recovered."""
SEARCH_STEPS, SEARCH_STEP_SIZE, START_DEVIATION = 200, 0.15, 0.3
"""Of Adam, on rows in units of the law's standard deviations; and how far from the class means it starts, so that rows of a class part."""
LEAST_UNEXPLAINED = 1e-8
"""Of a message's mean square: float32 rounds."""
BELIEF_WEIGHTS = (1.0, 1e-2, 1e-4)
"""Of an update in the posterior, as one step along the gradient is not all of it."""
TRIED_INVERSION_ROWS = 4
"""Rows on which the weights are tried, but at least as many as a client has."""
UNCLIPPED_NORM = 1e9
"""A clip norm that clips nothing and has a derivative."""
GRADIENT_RELEASES = (RELEASE, LOCAL_STEPS_RELEASE, UPDATES_RELEASE)
"""Releases that are gradients, or updates."""


@dataclass(frozen=True)
class AttackedSetting:
    """A privacy setting that is attacked: what it is called, the parameters, and the plan; None without one."""

    words: str
    params: Mapping[str, Any]
    plan: PrivacyPlan | None


@dataclass(frozen=True)
class RowLaw:
    """What the server knows of rows: their mean ``[d]``, class means ``[C, d]``, and a root of the covariance about those ``[d, d]``."""

    centre: Tensor
    means: Tensor
    root: Tensor

    @classmethod
    def of(cls, x: Rows, y: Labels, classes: int) -> RowLaw:
        """Of the rows that other clients hold; a class without any has the mean of all."""
        centre = x.mean(0)
        means = np.stack([x[y == label].mean(0) if (y == label).any() else centre for label in range(classes)])
        away = (x - means[y]).astype(np.float64)
        covariance = away.T @ away / len(x)
        covariance += 1e-3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        return cls(*(torch.from_numpy(part.astype(np.float32)) for part in (centre, means, np.linalg.cholesky(covariance))))

    def rows(self, y: Labels, away: Tensor) -> Tensor:
        """Rows of norm 1 that are ``away`` ``[n, d]`` from their classes' means, in standard deviations."""
        return normalize(self.means[y] + away @ self.root.T, dim=1)

    def scores(self, made: Tensor, true: Tensor) -> NDArray[np.float64]:
        """Cosines about the mean ``[n]`` of rows to the true ones, matched one to one so that their sum is largest (Hungarian)."""
        one, two = (normalize((rows - self.centre).double(), dim=1) for rows in (made, true))
        table: NDArray[np.float64] = (one @ two.T).numpy()
        matched: NDArray[np.float64] = table[linear_sum_assignment(-table)]
        return matched


class TappedPool(LocalPool):
    """The attacked client's cohort and that of all others, who are silent in the round that sends gradients first."""

    heard: tuple[Round, Tensors] | None = None

    def round(self, round_: Round, broadcast: Tensors) -> list[Message]:
        """See :class:`fedsim.methods.messages.Pool`."""
        if round_.release.name not in GRADIENT_RELEASES:
            return super().round(round_, broadcast)
        self.heard = round_, copied(broadcast)
        return [self.cohorts[0].round(round_, broadcast)]


@dataclass(frozen=True)
class AttackedClient:
    """A client of these labels ``y`` among others, who hold ``others``."""

    algorithm: str
    params: Mapping[str, Any]
    task: Task
    y: Labels
    others: tuple[Rows, Labels]
    root: int

    def listen(self, x: Rows, plan: PrivacyPlan | None, secret: int) -> tuple[Tensor, RowGradient]:
        """The client's first gradient or update, flat, as the server has it if its rows are ``x``; and f of this message's draws."""
        algorithm, seeds, sums = build_algorithm(self.algorithm, dict(self.params), self.task), Seeds(self.root, secret), Tensors()
        first, rest = (0,), tuple(range(1, self.task.clients))
        pool = TappedPool([self._cohort(first, x, self.y, plan, seeds), self._cohort(rest, *self.others, plan, seeds)])
        steps = train(algorithm, pool, plan, seeds, watch=lambda _, noisy: sums.update(copied(noisy)))
        for _ in steps:
            if pool.heard is not None:
                break
        else:
            raise UserError(f"algorithm {self.algorithm}", "has no round of its base class, whose gradients or updates inversion looks at")
        steps.close()
        gradient = RowGradient.of(algorithm, self._cohort(first, x, self.y, plan, seeds).clients, *pool.heard)
        return gradient.flat(sums), gradient

    def _cohort(self, members: tuple[int, ...], x: Rows, y: Labels, plan: PrivacyPlan | None, seeds: Seeds) -> Cohort:
        rows = tuple(np.arange(k, len(x), len(members)) for k in range(len(members)))
        groups = tuple(np.arange(len(own)) for own in rows) if self.task.unit == "group" else None
        return Cohort(CohortSpec(self.algorithm, dict(self.params), self.task, plan, seeds, members, rows, groups), x, y)


@dataclass(frozen=True)
class RowGradient:
    """f: rows ``[n, d]`` to the clipped sum of their gradients by the shared parameters, flat, with a derivative by the rows."""

    algorithm: Any
    model: Module
    batch: Batch
    norms: Norms
    names: tuple[str, ...]
    coordinates: Coordinates | None

    @classmethod
    def of(cls, algorithm: Algorithm, clients: Clients, round_: Round, broadcast: Tensors) -> RowGradient:
        """At the start of a round, of a client that has just begun."""
        model = clients.model
        load_parameters(model, {name: value[0] for name, value in clients.state.items()} | broadcast)
        names = tuple(name for name, p in model.named_parameters() if p.requires_grad and name in broadcast)
        unit: Unit = "group" if algorithm.task.unit == "group" else "example"
        if isinstance(algorithm, DPSGD):
            norms = algorithm.norms(model)
        else:
            norms = Norms(algorithm.clip() if _noisy_steps(algorithm) else UNCLIPPED_NORM, unit)
        batch = clients.batch([torch.arange(len(clients.x[0]))], round_.stream, algorithm.draws())  # type: ignore[attr-defined]
        return cls(algorithm, model, batch, norms, names, Coordinates.where_released(broadcast))

    def flat(self, sums: Mapping[str, Tensor]) -> Tensor:
        """The shared parameters' numbers in a row."""
        return torch.cat([sums[name].float().flatten() for name in self.names])

    def __call__(self, rows: Tensor) -> Tensor:
        """Gradients; minus them where a message is an update."""

        def parts(model: Module, batch: Batch) -> Tensor:
            return torch.stack(list(loss_parts(self.algorithm.loss, model, batch).values()), 1)

        seen = rows if self.coordinates is None else self.coordinates.of_rows(rows)
        made = self.flat(clipped_sum(self.model, parts, replace(self.batch, x=seen), self.norms, "vmap").sums)
        return made if isinstance(self.algorithm, DPSGD) else -made


def _noisy_steps(algorithm: Algorithm) -> bool:
    return isinstance(algorithm, LocalDPSGD) and algorithm.in_local_steps


@dataclass(frozen=True)
class Search:
    """How a server looks for a client's rows in a message.

    Attributes:
        law: what it knows of rows.
        y: the client's labels.
        scale, slack: a message is ``scale`` times f of its rows, within a factor of ``slack``.
        variance: of what f leaves unexplained, noise included.
    """

    law: RowLaw
    y: Labels
    scale: float
    slack: float
    variance: Tensor

    def rows(self, message: Tensor, gradient: RowGradient, start: Tensor, weight: float) -> Tensor:
        """The rows of the highest posterior density, with the message's part times ``weight``; ``start``: normal ``[n, d]``."""
        away = (START_DEVIATION * start).requires_grad_()
        optimiser = torch.optim.Adam([away], SEARCH_STEP_SIZE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, SEARCH_STEPS)
        for _ in range(SEARCH_STEPS):
            made = gradient(self.law.rows(self.y, away))
            length = (message @ made / made.square().sum()).clamp(self.scale / self.slack, self.scale * self.slack)
            loss = weight * (message - length * made).square().sum() / (2 * self.variance) + away.square().sum() / 2
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        return self.law.rows(self.y, away.detach())


def reconstructed(client: AttackedClient, plan: PrivacyPlan | None, x: Rows, law: RowLaw, start: Tensor) -> Tensor:
    """What the server takes for the rows ``x`` ``[n, d]`` after one message; ``start``: standard normal ``[1 + k, n, d]``, for k trials."""
    message, gradient = client.listen(x, plan, client.root + 1)
    # messages of its own, with other noise and draws
    guess = law.rows(client.y, torch.zeros_like(start[0]))
    own, own_gradient = client.listen(guess.numpy(), plan, client.root + 2)
    at_guess, scale, slack = own_gradient(guess).detach(), 1.0, 1.0
    exact = isinstance(gradient.algorithm, DPSGD)
    if not exact:
        outside = plan is not None and not _noisy_steps(gradient.algorithm)
        bare = client.listen(guess.numpy(), replace(plan, sigma=0.0), client.root + 2)[0] if outside and plan is not None else own
        scale, slack = abs(float(bare @ at_guess / at_guess.square().sum())), 2.0
    variance = (own - scale * at_guess).square().mean().clamp_min(LEAST_UNEXPLAINED * message.square().mean())
    search = Search(law, client.y, scale, slack, variance)
    if exact:
        return search.rows(message, gradient, start[0], 1.0)
    # how far one step can be believed is tried on clients whose rows the law gives
    scores = dict.fromkeys((*BELIEF_WEIGHTS, 0.0), 0.0)
    for secret, drawn in enumerate(start[1:], client.root + 3):
        tried = law.rows(client.y, drawn)
        played, f = client.listen(tried.numpy(), plan, secret)
        for weight in scores:
            made = search.rows(played, f, start[0], weight) if weight else guess
            scores[weight] += float(law.scores(made, tried).mean())
    best = max(scores, key=lambda weight: scores[weight])
    return search.rows(message, gradient, start[0], best) if best else guess


class Inversion:
    """The attack on a number of clients, with few rows and with many, without privacy and with it.

    Args:
        algorithm: as a grid gives it.
        params: all its parameters.
        unit: what the claim protects.
        trust: who may see what.
        epsilon: the claim.
        delta: of the claim.
        data: whose training rows clients hold, unit norm.
        clients: how many are attacked in each setting.

    Raises:
        UserError: the algorithm sends no gradients, or has no plan for the claim; the data have too few rows.
    """

    def __init__(
        self,
        algorithm: str,
        params: Mapping[str, Any],
        unit: Unit,
        trust: Trust,
        epsilon: float,
        delta: float,
        data: Embeddings,
        clients: int,
    ) -> None:
        kind = lookup(algorithm)
        if not issubclass(kind, DPSGD | LocalTraining):
            what = "sends neither gradients nor updates of a model, which inversion looks at"
            raise UserError(f"algorithm {algorithm}", what, "give --attack white-box, or black-box")
        if len(data.y_train) < (least := 2 * max(BATCH_ROWS)):
            raise UserError("dataset", f"{len(data.y_train)} training rows are too few for this attack", f"give {least} or more")
        self.algorithm, self.data = algorithm, data
        self.task = Task(data.dim, data.classes, INVERSION_CLIENTS, unit, trust, public=PublicRows.made_up(data.dim, data.classes))
        self.variants = tuple(self._variants(dict(params), epsilon, delta, private=kind.private))
        self.count = clients * len(self.variants) * len(BATCH_ROWS)
        self.key = key(algorithm, params, [unit, trust, epsilon, delta, "inversion", data.fingerprint, harness_hash("evidence")])

    def _variants(self, params: dict[str, Any], epsilon: float, delta: float, *, private: bool) -> Iterator[AttackedSetting]:
        """Without privacy; for a private algorithm also at the claim, with the parameters as given and, where it can, less of it noised."""
        bare = plan_of(self.algorithm, params, self.task, math.inf if private else None, delta)
        yield AttackedSetting("without DP", params, bare)
        local = local_names(build_algorithm(self.algorithm, params, self.task).build(1))
        noised = list(dict.fromkeys(["shared", params["noised"]])) if "noised" in params and local else [None]
        for part in noised if private and epsilon < math.inf else ():
            own = params if part is None else {**params, "noised": part}
            plan = plan_of(self.algorithm, own, self.task, epsilon, delta)
            assert plan is not None
            yield AttackedSetting(f"ε = {number(epsilon)}, scope {plan.scope}", own, plan)

    def line(self, index: int) -> dict[str, Any]:
        """Attack one client in one setting with one number of rows; the same clients are attacked in every setting."""
        client, place = divmod(index, len(self.variants) * len(BATCH_ROWS))
        variant, size = self.variants[place // len(BATCH_ROWS)], BATCH_ROWS[place % len(BATCH_ROWS)]
        stream = np.random.default_rng(np.random.SeedSequence(client, spawn_key=(size,)))
        x, y = self.data.x_train, self.data.y_train
        own = np.isin(np.arange(len(y)), stream.choice(len(y), size, replace=False))
        start = torch.from_numpy(stream.standard_normal((1 + max(1, TRIED_INVERSION_ROWS // size), size, self.task.dim)).astype(np.float32))
        # all of the client's rows are in its message, with the noise that is planned for samples
        params = {**variant.params, **{name: 1.0 for name in ("sample_rate", "client_rate") if name in variant.params}}
        attacked = AttackedClient(self.algorithm, params, self.task, y[own], (x[~own], y[~own]), client)
        law = RowLaw.of(*attacked.others, self.task.classes)
        true, guess = torch.from_numpy(x[own]), law.means[y[own]]
        cosines = law.scores(reconstructed(attacked, variant.plan, x[own], law, start), true)
        found = {"cosine": float(cosines.mean()), "guess": float(law.scores(guess, true).mean())}
        return {"pair": index, "setting": variant.words, "rows": size, **found, "recovered": float((cosines > RECOVERED_COSINE).mean())}

    def completed(self, lines: Sequence[dict[str, Any]], append: Append, count: Count) -> Reached:
        """Attack who is missing in ``lines``; what they say is a :meth:`table`, and never refutes a claim."""
        torch.set_num_threads(1)
        done = {line["pair"] for line in lines}
        with_missing((self.line(index) for index in range(self.count) if index not in done), lines, append, count)
        return ["an illustration, which bounds no ε: other attacks may find more"], False

    def table(self, lines: Sequence[Mapping[str, Any]]) -> Table:
        """The mean of all attacked clients, a row for every setting and number of rows."""
        table = Table(
            title=f"inversion of {self.algorithm}, rows of {self.data.name}: cosine about the mean to true rows",
            title_justify="left",
            show_edge=False,
        )
        for head in ("setting", "rows", "attack", "guess without data", f"rows above {RECOVERED_COSINE}"):
            table.add_column(head, justify="left" if head == "setting" else "right")
        for row in summary(line for line in lines if line["pair"] < self.count):
            table.add_row(row.setting, str(row.rows), f"{row.cosine:.2f}", f"{row.guess:.2f}", f"{row.recovered:.0%}")
        return table


@dataclass(frozen=True)
class MeanScores:
    """What lines of one setting and number of rows say on average."""

    setting: str
    rows: int
    cosine: float
    guess: float
    recovered: float


def summary(lines: Iterable[Mapping[str, Any]]) -> list[MeanScores]:
    """The mean over clients of each setting and number of rows, in order of their numbers."""
    own: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for line in sorted(lines, key=lambda line: int(line["pair"])):
        own.setdefault((line["setting"], line["rows"]), []).append(line)
    names = ("cosine", "guess", "recovered")
    return [MeanScores(*place, *(float(np.mean([line[name] for line in some])) for name in names)) for place, some in own.items()]
