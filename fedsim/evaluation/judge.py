"""How what an algorithm made is judged: synthetic embeddings by a probe, a classifier directly, and
both as each client would use them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.data.embeddings import Embeddings
from fedsim.device import CPU, to_device
from fedsim.evaluation.measures import LabelShares, Predictions
from fedsim.evaluation.readouts import READOUTS, Labelled
from fedsim.evaluation.scores import (
    Scores,
    mean_scores,
    personal_scores,
    predictions_of,
    probe_predictions,
    recall_per_class,
    score_classifier,
    scores_of_clients,
    scores_with,
)
from fedsim.grid.models import Cell
from fedsim.methods.messages import Tensors
from fedsim.methods.products import (
    Classifier,
    FiniteRows,
    Generator,
    before_shortening,
    is_classifier,
    is_personal,
    own,
)
from fedsim.models.linear import Interpolated, ProbeClassifier, best_weight, fit_linear, folded
from fedsim.models.probe import Probe, fit_probe
from fedsim.partition import Partition
from fedsim.partition.partition import OwnRows, own_rows
from fedsim.seeds import SERVER, Purpose, Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.rounds import restored
from fedsim.training.trial import Trial

FEW = 20
"""Rows a class that a generator's norm is measured on."""


def synthesise(
    generator: Generator,
    classes: int,
    per_class: int,
    seeds: Seeds,
    client: int = SERVER,
    draw: int = 0,
    device: torch.device = CPU,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Synthetic embeddings with uniform labels, which cost no privacy: ``[classes * per_class, d]``
    and their labels.

    The draw of that number is of ``client``'s stream, or the server's where all share one. Of
    finite rows none is twice in a draw.
    """
    counts = torch.full((classes,), per_class)
    inner = before_shortening(generator)
    if isinstance(inner, FiniteRows):
        counts = torch.bincount(inner.y, minlength=classes).clamp(max=per_class)
    labels = torch.arange(classes).repeat_interleave(counts)
    x = generator.sample(to_device(labels, device), seeds.torch(Purpose.SYNTHESIS, draw, client))
    return x.cpu().numpy().astype(np.float32, copy=False), labels.numpy()


@dataclass(frozen=True)
class ClientScores:
    """One client's scores on its own test rows: by its ``own`` generator or classifier, and by the
    one that all share.

    Each is None where there is no test row, or nothing is shared. The client has a number, and a
    name: its site, or the number; it holds ``rows`` training rows, and is judged on ``test_rows``.
    """

    client: int
    name: str
    rows: int
    test_rows: int
    own: Scores | None
    shared: Scores | None


@dataclass(frozen=True)
class Judgement:
    """The scores of what a cell made, by the names of the measures, and every class's recall; None
    for one without a test row.

    Attributes:
        clients: every client's scores, where clients are judged one by one.
        tested: on which test rows clients were judged, in words; None where they were not.
        label_shares: which labels plain accuracy is from: those that the algorithm ``released``
            under its budget, or ``uniform`` ones; None for a classifier, which has its own.
    """

    scores: Scores
    recalls: tuple[float | None, ...]
    clients: tuple[ClientScores, ...] = field(repr=False)
    tested: str | None
    label_shares: LabelShares | None


def judge_of(trial: Trial, state: Tensors, data: Embeddings, device: torch.device = CPU) -> Judge:
    """The judge of what a training made, made again from its ``state``
    (:attr:`fedsim.training.rounds.Trained.state`).
    """
    cell = trial.cell
    algorithm = build_algorithm(cell.algorithm, cell.params, trial.task)
    made, shares = restored(algorithm, state, trial.plan, Seeds(cell.seed), device)
    return Judge(cell, data, trial.partition, made, shares, device)


def judgement_of(
    trial: Trial, state: Tensors, data: Embeddings, device: torch.device = CPU
) -> Judgement:
    """All that its evaluation asks for of a training."""
    return judge_of(trial, state, data, device).judgement()


@dataclass(frozen=True)
class Judge:
    """The evaluation of what one cell ``made``, as the cell's ``evaluation`` says. Embeddings are
    drawn, and their probe is fitted, once.

    ``shares`` are how frequent each class is, as the algorithm released it ``[C]``; None where it
    did not. Probes are the CPU's.
    """

    cell: Cell
    data: Embeddings
    partition: Partition
    made: Generator | Classifier
    shares: NDArray[np.float64] | None = None
    device: torch.device = CPU

    def judgement(self) -> Judgement:
        """All that the evaluation asks for. Balanced accuracy is of uniform labels, plain accuracy
        of released ones where there are any.
        """
        predicted = self.predictions()
        evaluation = self.cell.evaluation
        scores = mean_scores(
            [scores_with(predictions, self._label_shares) for predictions in predicted]
        )
        if evaluation.per_client:
            clients = self.of_clients()
        else:
            clients = ()
        scores |= self.size() | self.readouts()
        scores |= scores_of_clients(
            [client.own for client in clients], [client.shared for client in clients]
        )
        if evaluation.personal is not None:
            scores |= self.personal()
        if clients or evaluation.personal is not None:
            tested = self.own_rows.words
        else:
            tested = None
        labels: LabelShares | None = (
            None if is_classifier(self.made) else "uniform" if self.shares is None else "released"
        )
        return Judgement(
            scores, recall_per_class(predicted, self.data.classes), clients, tested, labels
        )

    def predictions(self) -> list[Predictions]:
        """Of all test rows, by what everyone has; of clients with classifiers of their own, one
        each.
        """
        data = self.data
        made = self.made
        if is_classifier(made):
            clients = range(self.cell.clients if is_personal(made) else 1)
            x_test = to_device(torch.from_numpy(data.x_test), self.device)
            return [
                predictions_of(own(made, client).probabilities(x_test), data.y_test)
                for client in clients
            ]
        return [probe_predictions(self.probe, data.x_test, data.y_test, data.classes)]

    def readouts(self) -> Scores:
        """What the evaluation asks for beside the linear probe; empty where there is no
        generator.
        """
        scores = Scores()
        evaluation = self.cell.evaluation
        real = Labelled(self.data.x_test, self.data.y_test)
        for name in () if is_classifier(self.made) else evaluation.readouts:
            scores.update(READOUTS[name](self._rows, real, evaluation.real_c))
        return scores

    def size(self) -> Scores:
        """The mean norm of a few rows as the shared generator draws them; empty where long ones are
        not shortened.
        """
        before = before_shortening(self.made)
        if before is self.made or is_classifier(before):
            return Scores()
        x, _ = synthesise(
            before, self.data.classes, FEW, Seeds(self.cell.seed), draw=3, device=self.device
        )
        return Scores(synthetic_norm=float(np.linalg.norm(x.astype(np.float64), axis=1).mean()))

    def of_clients(self) -> tuple[ClientScores, ...]:
        """Of what each client has of its own, and of what all share, on the client's test rows."""
        found = []
        names = self.own_rows.names
        shared = self._read(self.made, SERVER)
        for client, test in enumerate(self.own_rows.rows):
            if is_personal(self.made):
                mine = self._read(own(self.made, client), client)
            else:
                mine = shared
            # of classifiers that are each client's own nothing is shared
            readers = (
                mine,
                None if is_personal(self.made) and is_classifier(self.made) else shared,
            )
            x = self.data.x_test[test]
            y = self.data.y_test[test]
            of = [
                score_classifier(each, x, y, self.device, self._label_shares)
                if each and len(test)
                else None
                for each in readers
            ]
            found.append(
                ClientScores(
                    client, names[client], len(self.partition.rows[client]), len(test), *of
                )
            )
        return tuple(found)

    def _read(self, made: Generator | Classifier, client: int) -> Classifier:
        """A classifier as it is, a generator as the probe on its embeddings."""
        if is_classifier(made):
            return made
        if client == SERVER:
            return ProbeClassifier(self.probe, self.data.classes)
        rows = self._drawn(made, client)
        return ProbeClassifier(fit_probe(rows.x, rows.y, self._probe_c), self.data.classes)

    def personal(self) -> Scores:
        """As each client would predict: by weight * own classifier + (1 - weight) * the one from
        synthetic embeddings.

        This mixture is that of Di Salvo et al. 2025 (arXiv 2507.02671), the rule for its weight is
        not: they choose one weight for all clients, on the clients' real validation examples. Here
        each client has its own weight, the best one on other synthetic embeddings (of finite rows
        on the same ones), weighed by the client's label shares (``synthetic``), or all have the
        given one. A client's own classifier, trained on its real rows, and its weight stay with it.
        A classifier is taken as it is, and has no weight.
        """
        made = self.made
        data = self.data
        evaluation = self.cell.evaluation
        if is_classifier(made):
            on_device = to_device(torch.from_numpy(data.x_test), self.device)
            seen = [
                self._as_seen(client, own(made, client).probabilities, on_device)
                for client in range(self.cell.clients)
            ]
            return personal_scores(seen)
        shared = folded(self.probe, data.classes)
        other = self._drawn(made, draw=1)
        rows, labels, x_test = (torch.from_numpy(part) for part in (other.x, other.y, data.x_test))
        predicted = []
        alone = []
        weights = []
        for client in range(self.cell.clients):
            x = data.x_train[self.partition.rows[client]]
            y = data.y_train[self.partition.rows[client]]
            local = fit_linear(x, y, data.classes, evaluation.real_c)
            if evaluation.personal == "synthetic":
                importance = torch.from_numpy(self._share(client))[labels]
                weight = best_weight(
                    local.probabilities(rows), shared.probabilities(rows), labels, importance
                )
            else:
                weight = float(evaluation.personal or 0)
            predicted.append(
                self._as_seen(client, Interpolated(local, shared, weight).probabilities, x_test)
            )
            alone.append(self._as_seen(client, local.probabilities, x_test))
            weights.append(weight)
        by_itself = {
            name.replace("personal", "personal_alone"): score
            for name, score in personal_scores(alone).items()
        }
        return Scores(
            personal_scores(predicted), **by_itself, personal_weight=float(np.mean(weights))
        )

    @property
    def _label_shares(self) -> NDArray[np.float64] | None:
        """Labels that synthetic rows stand for; a classifier is taken as it is."""
        if is_classifier(self.made):
            return None
        return self.shares

    @cached_property
    def _rows(self) -> Labelled:
        """The shared generator's embeddings."""
        assert not is_classifier(self.made)
        return self._drawn(self.made)

    @cached_property
    def probe(self) -> Probe:
        """The linear probe on the shared generator's embeddings."""
        return fit_probe(self._rows.x, self._rows.y, self._probe_c)

    @property
    def _probe_c(self) -> float:
        return self.cell.evaluation.synthetic_c(
            len(self.data.x_train), self.data.dim, self.data.classes
        )

    def _drawn(self, generator: Generator, client: int = SERVER, draw: int = 0) -> Labelled:
        rows = self.cell.evaluation.rows_per_class(self.data.dim, self.data.classes)
        return Labelled(
            *synthesise(
                generator, self.data.classes, rows, Seeds(self.cell.seed), client, draw, self.device
            )
        )

    def _as_seen(
        self, client: int, probabilities: Callable[[Tensor], Tensor], x_test: Tensor
    ) -> Predictions:
        seen = self.own_rows.rows[client]
        return predictions_of(
            probabilities(x_test[seen]), self.data.y_test[seen], self._share(client)
        )

    @cached_property
    def own_rows(self) -> OwnRows:
        """Which test rows each client is judged on."""
        return own_rows(self.data, self.partition, self.cell.partition)

    def _share(self, client: int) -> NDArray[np.float64]:
        y = self.data.y_train[self.partition.rows[client]]
        return np.bincount(y, minlength=self.data.classes) / max(len(y), 1)
