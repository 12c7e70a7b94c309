"""How what an algorithm made is judged: synthetic embeddings by a probe, a classifier directly, and both as each client would use them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.data.embeddings import Embeddings
from fedsim.device import CPU, to_device
from fedsim.evaluation.scores import Scores, mean_scores, personal_scores, predictions_of, score_classifier, score_clients, score_probe
from fedsim.evaluation.weights import best_weight, held_out_weight
from fedsim.grid.models import Cell
from fedsim.methods.products import Classifier, Generator, is_classifier, is_personal, own
from fedsim.models.linear import Interpolated, fit_linear
from fedsim.partition import SCHEMES, Partition
from fedsim.results.measures import Predictions
from fedsim.seeds import SERVER, Purpose, Seeds


def synthesise(
    generator: Generator,
    classes: int,
    per_class: int,
    seeds: Seeds,
    client: int = SERVER,
    draw: int = 0,
    device: torch.device = CPU,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Synthetic embeddings with uniform labels, which cost no privacy: ``[classes * per_class, d]`` and their labels.

    Args:
        generator: on ``device``.
        classes: C.
        per_class: rows of each.
        seeds: of the draw.
        client: whose draw; the server's where all share one.
        draw: the number of the draw.
        device: where the generator is.
    """
    labels = torch.arange(classes).repeat_interleave(per_class)
    x = generator.sample(to_device(labels, device), seeds.torch(Purpose.SYNTHESIS, draw, client))
    return x.cpu().numpy().astype(np.float32, copy=False), labels.numpy()


@dataclass(frozen=True)
class Judge:
    """The evaluation of one cell.

    Attributes:
        cell: the cell; its ``evaluation`` says how.
        data: real rows.
        partition: who holds which training rows.
        device: where what is judged computes; probes are the CPU's.
    """

    cell: Cell
    data: Embeddings
    partition: Partition
    device: torch.device = CPU

    def scores(self, made: Generator | Classifier) -> Scores:
        """On all test rows; of clients with classifiers of their own, the mean."""
        data, evaluation = self.data, self.cell.evaluation
        if is_classifier(made):
            clients = range(self.cell.clients if is_personal(made) else 1)
            return mean_scores([score_classifier(own(made, client), self._x_test, data.y_test) for client in clients])
        x, y = self._synthesise(made)
        return score_probe(x, y, data.x_test, data.y_test, evaluation.probe_c)

    def of_clients(self, made: Generator | Classifier) -> Scores:
        """Of probes trained on each client's own synthetic embeddings; empty where there is no generator."""
        if is_classifier(made):
            return Scores()
        evaluation, clients = self.cell.evaluation, range(self.cell.clients)
        rows = [self._synthesise(own(made, client), client) for client in clients]
        return score_clients(rows, self.data.x_test, self.data.y_test, evaluation.probe_c)

    def personal(self, made: Generator | Classifier) -> Scores:
        """As each client would predict: by weight * own classifier + (1 - weight) * the one from synthetic embeddings.

        The protocol of Di Salvo et al. 2025 (arXiv 2507.02671). A client's own classifier, trained on its real rows, and its weight stay
        with it. The weight is the best one on other synthetic embeddings, weighed by the client's label shares (``synthetic``), on a fifth
        of its real rows that its classifier did not see (``held-out``), or given. A classifier is taken as it is, and has no weight.
        """
        clients = range(self.cell.clients)
        if is_classifier(made):
            return personal_scores([self._as_seen(client, own(made, client).probabilities, self._x_test) for client in clients])
        return self._interpolated(made)

    def _interpolated(self, generator: Generator) -> Scores:
        data, evaluation = self.data, self.cell.evaluation
        shared = fit_linear(*self._synthesise(generator), data.classes, evaluation.probe_c)
        other, x_test = [torch.from_numpy(part) for part in self._synthesise(generator, draw=1)], torch.from_numpy(data.x_test)
        predicted, weights = [], []
        for client in range(self.cell.clients):
            x, y = data.x_train[self.partition.rows[client]], data.y_train[self.partition.rows[client]]
            local = fit_linear(x, y, data.classes, evaluation.probe_c)
            if evaluation.personal == "held-out":
                weight = held_out_weight(x, y, shared, data.classes, evaluation.probe_c)
            elif evaluation.personal == "synthetic":
                rows, labels = other
                importance = torch.from_numpy(self._share(client))[labels]
                weight = best_weight(local.probabilities(rows), shared.probabilities(rows), labels, importance)
            else:
                weight = float(evaluation.personal or 0)
            predicted.append(self._as_seen(client, Interpolated(local, shared, weight).probabilities, x_test))
            weights.append(weight)
        return Scores(personal_scores(predicted), personal_weight=float(np.mean(weights)))

    def _synthesise(self, generator: Generator, client: int = SERVER, draw: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return synthesise(generator, self.data.classes, self.cell.evaluation.per_class, self._seeds, client, draw, self.device)

    def _as_seen(self, client: int, probabilities: Callable[[Tensor], Tensor], x_test: Tensor) -> Predictions:
        seen = self._seen(client)
        return predictions_of(probabilities(x_test[seen]), self.data.y_test[seen], self._share(client))

    def _seen(self, client: int) -> slice:
        return SCHEMES[self.cell.partition.scheme].test_rows(client, self.cell.clients)

    def _share(self, client: int) -> NDArray[np.float64]:
        y = self.data.y_train[self.partition.rows[client]]
        return np.bincount(y, minlength=self.data.classes) / max(len(y), 1)

    @cached_property
    def _x_test(self) -> Tensor:
        return to_device(torch.from_numpy(self.data.x_test), self.device)

    @property
    def _seeds(self) -> Seeds:
        return Seeds(self.cell.seed)
