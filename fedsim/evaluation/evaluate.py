"""Evaluates the generator or classifier of a cell on real test rows.

Synthetic embeddings are scored through a linear probe and other evaluators, a classifier directly.
Both can also be scored as each client would use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.data.embeddings import Embeddings
from fedsim.data.split import Integers
from fedsim.device import CPU, to_device
from fedsim.evaluation.evaluators import EVALUATORS, Labelled
from fedsim.evaluation.measures import HELD_OUT, LabelShares, Predictions
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
from fedsim.evaluation.subset import (
    MOST_CLIENT_SCORES,
    MOST_TEST_ROWS,
    balanced_rows,
    client_rows,
    most_per_client,
    own_rows_among,
    probed_clients,
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
from fedsim.models.linear import (
    TRIED_WEIGHTS,
    Interpolated,
    LinearClassifier,
    ProbeClassifier,
    best_weight,
    fit_linear,
    folded,
)
from fedsim.models.probe import Probe, fit_probe
from fedsim.partition import Partition
from fedsim.partition.partition import OwnRows
from fedsim.seeds import SERVER, Purpose, Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.rounds import restored
from fedsim.training.trial import Trial

FEW = 20
"""The number of embeddings per class from which a generator's mean norm is computed."""


def synthesise(
    generator: Generator,
    classes: int,
    per_class: int,
    seeds: Seeds,
    client: int = SERVER,
    draw: int = 0,
    device: torch.device = CPU,
) -> tuple[NDArray[np.float32], Integers]:
    """Return synthetic embeddings with equally frequent labels, which cost no privacy.

    A generator that holds a finite number of embeddings gives each of them at most once, so that
    there may be fewer than ``per_class``.

    Args:
        generator: the generator to draw from.
        classes: the number of classes, C.
        per_class: the number of embeddings per class.
        seeds: the seeds of the cell.
        client: the client whose random stream is used; the server's if all share the generator.
        draw: the number of the draw within the stream; other numbers give other embeddings.
        device: the device of the generator.

    Returns:
        Embeddings float32 ``[n, d]`` and labels int64 ``[n]``; n is at most ``C * per_class``.
    """
    counts = torch.full((classes,), per_class)
    inner = before_shortening(generator)
    if isinstance(inner, FiniteRows):
        counts = torch.bincount(inner.y, minlength=classes).clamp(max=per_class)
    labels = torch.arange(classes).repeat_interleave(counts)
    stream = seeds.torch(Purpose.SYNTHESIS, draw, client)
    x = generator.sample(to_device(labels, device), stream)
    return x.cpu().numpy().astype(np.float32, copy=False), labels.numpy()


@dataclass(frozen=True)
class ClientScores:
    """The scores of one client on its own test rows.

    Attributes:
        client: the number of the client.
        name: its site, or its number as a text.
        rows: the number of its training rows.
        test_rows: the number of its test rows.
        own: the scores of its own generator or classifier; None if it has no test row.
        shared: the scores of the generator or classifier that all clients share; None if it has no
            test row or nothing is shared.
    """

    client: int
    name: str
    rows: int
    test_rows: int
    own: Scores | None
    shared: Scores | None


@dataclass(frozen=True)
class EvaluationResult:
    """The complete evaluation of a cell.

    Attributes:
        scores: the scores by the names of their measures.
        recalls: the recall of every class; None for a class without a test row.
        clients: the scores of every client; empty if clients are not evaluated one by one.
        tested: a description of the clients' test rows; None if no client is evaluated.
        label_shares: the label frequencies of plain accuracy: those that the algorithm ``released``
            under its budget, or ``uniform`` ones; None for a classifier, which learned its own.
    """

    scores: Scores
    recalls: tuple[float | None, ...]
    clients: tuple[ClientScores, ...] = field(repr=False)
    tested: str | None
    label_shares: LabelShares | None


def cell_evaluator(
    trial: Trial,
    state: Tensors,
    data: Embeddings,
    device: torch.device = CPU,
) -> CellEvaluator:
    """Return the evaluator of a trained cell, with its generator or classifier restored.

    Args:
        trial: the trained cell.
        state: the state at the end (:attr:`fedsim.training.rounds.Trained.state`).
        data: the data set of the cell.
        device: the device that computes.
    """
    cell = trial.cell
    algorithm = build_algorithm(cell.algorithm, cell.params, trial.task)
    product, shares = restored(algorithm, state, trial.plan, Seeds(cell.seed), device)
    return CellEvaluator(cell, data, trial.partition, product, shares, device)


def evaluate_cell(
    trial: Trial,
    state: Tensors,
    data: Embeddings,
    device: torch.device = CPU,
) -> EvaluationResult:
    """Return the complete evaluation of a trained cell.

    The arguments are those of :func:`cell_evaluator`.
    """
    return cell_evaluator(trial, state, data, device).result()


@dataclass(frozen=True)
class CellEvaluator:
    """The evaluation of one cell's generator or classifier, as the grid's ``evaluation`` says.

    The embeddings that the probe is fitted to are drawn once, and it is fitted once, on the CPU. Of
    large data a fixed choice of test rows is used (:mod:`fedsim.evaluation.subset`).

    Attributes:
        cell: the cell.
        data: its data set.
        partition: the training rows of each client.
        product: the generator or classifier that the cell's training made.
        shares: the class frequencies ``[C]`` that the algorithm released; None if it released none.
        device: the device of the generator or classifier.
    """

    cell: Cell
    data: Embeddings
    partition: Partition
    product: Generator | Classifier
    shares: NDArray[np.float64] | None = None
    device: torch.device = CPU

    def result(self) -> EvaluationResult:
        """Return everything that the grid's ``evaluation`` asks for.

        Balanced accuracy counts all labels alike. Plain accuracy uses the released label
        frequencies if there are any.
        """
        evaluation = self.cell.evaluation
        predicted = self.predictions()
        scores = mean_scores(
            [scores_with(predictions, self._label_shares) for predictions in predicted]
        )
        scores |= self.synthetic_norm()
        scores |= self.evaluators()
        clients: tuple[ClientScores, ...] = ()
        tested = None
        if evaluation.per_client:
            clients = self.of_clients()
            scores |= scores_of_clients(
                [client.own for client in clients], [client.shared for client in clients]
            )
        if evaluation.personal is not None:
            scores |= self.personal()
        if clients or evaluation.personal is not None:
            tested = self.own_rows.words
        recalls = recall_per_class(predicted, self.data.classes)
        return EvaluationResult(scores, recalls, clients, tested, self._label_words())

    def predictions(self) -> list[Predictions]:
        """Return predictions for the test rows.

        Returns:
            One set of predictions, or one per client if each client has its own classifier.
        """
        product = self.product
        test = self._test
        if not is_classifier(product):
            return [probe_predictions(self.probe, test.x, test.y, self.data.classes)]
        predictors = 1
        if is_personal(product):
            predictors = self.cell.clients
            test = self._client_test
        x_test = self._on_device(test.x)
        return [
            predictions_of(own(product, client).probabilities(x_test), test.y)
            for client in range(predictors)
        ]

    def evaluators(self) -> Scores:
        """Return the scores of the grid's other evaluators; empty for a classifier."""
        scores = Scores()
        if is_classifier(self.product):
            return scores
        evaluation = self.cell.evaluation
        for name in evaluation.evaluators:
            scores |= EVALUATORS[name](self._synthetic, self._test, evaluation.real_c)
        return scores

    def synthetic_norm(self) -> Scores:
        """Return the mean norm of a few embeddings before long ones are shortened.

        Returns:
            The score ``synthetic_norm``; empty if the generator does not shorten embeddings.
        """
        unshortened = before_shortening(self.product)
        if unshortened is self.product or is_classifier(unshortened):
            return Scores()
        few = self._draw(unshortened, draw=3, per_class=FEW)
        norms = np.linalg.norm(few.x.astype(np.float64), axis=1)
        return Scores(synthetic_norm=float(norms.mean()))

    def of_clients(self) -> tuple[ClientScores, ...]:
        """Return every client's scores on its own test rows.

        Each client is scored twice: by its own generator or classifier, and by the one that all
        clients share. A client that has none of its own uses the shared one.
        """
        clients = []
        personal = is_personal(self.product)
        shared: Classifier | None = self._classifier_of(self.product, SERVER)
        if personal and is_classifier(self.product):
            shared = None  # every client has its own classifier, so nothing is shared
        # Clients that are tested on all test rows share one array, which is scored once.
        shared_scores: dict[int, Scores | None] = {}
        for client, name in enumerate(self.own_rows.names):
            test_rows = self.own_rows.rows[client]
            rows_id = id(test_rows)
            if rows_id not in shared_scores:
                shared_scores[rows_id] = self._score_on(shared, test_rows)
            own_scores = shared_scores[rows_id]
            if personal:
                own_classifier = self._classifier_of(own(self.product, client), client)
                own_scores = self._score_on(own_classifier, test_rows)
            clients.append(
                ClientScores(
                    client=client,
                    name=name,
                    rows=len(self.partition.rows[client]),
                    test_rows=len(test_rows),
                    own=own_scores,
                    shared=shared_scores[rows_id],
                )
            )
        return tuple(clients)

    def _score_on(
        self,
        classifier: Classifier | None,
        rows: Integers,
    ) -> Scores | None:
        """Return the scores of a classifier on a client's test rows; None if either is missing."""
        if classifier is None or not len(rows):
            return None
        x = self._client_test.x[rows]
        y = self._client_test.y[rows]
        return score_classifier(classifier, x, y, self.device, self._label_shares)

    def _classifier_of(self, product: Generator | Classifier, client: int) -> Classifier:
        """Return a classifier as it is, and for a generator the probe on its embeddings."""
        if is_classifier(product):
            return product
        if client == SERVER:
            return ProbeClassifier(self.probe, self.data.classes)
        synthetic = self._draw(product, client, per_class=self._per_class_of_client)
        probe = fit_probe(synthetic.x, synthetic.y, self._probe_c)
        return ProbeClassifier(probe, self.data.classes)

    def personal(self) -> Scores:
        """Return the scores of the clients' personal predictors, as means over the clients.

        A client predicts with the mixture ``weight * own classifier + (1 - weight) * shared one``.
        Its own classifier is trained on its real rows, the shared one on synthetic embeddings. Its
        own classifier stays with the client. So does its weight under the rule ``synthetic``. Where
        the algorithm made a classifier, that one predicts, and there is no weight.

        This mixture is that of Di Salvo et al. 2025 (arXiv 2507.02671). The grid chooses the rule
        for its weight:

        - ``held-out``, their rule (``eval_ours.py`` of github.com/myng15/federated-dp-cvae at
          e9c6077): all clients have the weight with the best mean accuracy over clients, on real
          validation examples that nothing trains on, neither before the choice nor after it. The
          choice is not private, so the scores have names of their own. They cut validation and test
          examples class by class from each client's data. Here the cut looks at no label
          (:func:`fedsim.partition.with_validation`), and the test split of a client is the data
          set's test rows as the client sees them, at its label frequencies.
        - ``synthetic``: each client has the weight that is best on other synthetic embeddings,
          weighted by the client's label frequencies. A generator with finitely many embeddings may
          give some of them again.
        - a number: all clients have this weight.
        """
        if is_classifier(self.product):
            scores = self._personal_classifiers(self.product)
        else:
            scores = self._personal_mixtures(self.product)
        if self.cell.evaluation.has_validation:
            return Scores(
                {name.replace("personal", HELD_OUT): score for name, score in scores.items()},
            )
        return scores

    def _personal_mixtures(self, product: Generator) -> Scores:
        """Return the scores of each client's mixture and of its own classifier alone."""
        data = self.data
        x_test = torch.from_numpy(self._client_test.x)
        real_c = self.cell.evaluation.real_c
        clients = probed_clients(self.partition)
        rows_of_clients = zip(clients, client_rows(data, self.partition), strict=True)
        local_classifiers = {
            client: fit_linear(data.x_train[rows], data.y_train[rows], data.classes, real_c)
            for client, rows in rows_of_clients
        }
        personal = self.cell.evaluation.personal
        if personal == "synthetic":
            weights = self._weights_on_synthetic(product, local_classifiers)
        elif personal == "held-out":
            weights = self._weights_on_validation(local_classifiers)
        else:
            weights = [float(personal or 0)] * len(local_classifiers)
        mixed = []
        alone = []
        for (client, local), weight in zip(local_classifiers.items(), weights, strict=True):
            both = Interpolated(local, self._shared_classifier, weight)
            mixed.append(self._predict_own_rows(client, both, x_test))
            alone.append(self._predict_own_rows(client, local, x_test))
        scores = personal_scores(mixed)
        for name, score in personal_scores(alone).items():
            scores[name.replace("personal", "personal_alone")] = score
        scores["personal_weight"] = float(np.mean(weights))
        return scores

    def _personal_classifiers(self, product: Classifier) -> Scores:
        """Return the scores of the algorithm's classifier, or of each client's own one."""
        x_test = self._on_device(self._client_test.x)
        return personal_scores(
            [
                self._predict_own_rows(client, own(product, client), x_test)
                for client in range(self.cell.clients)
            ]
        )

    def _weights_on_synthetic(
        self,
        product: Generator,
        local_classifiers: Mapping[int, LinearClassifier],
    ) -> list[float]:
        """Return the weight of every client that is best on other synthetic embeddings.

        Args:
            product: the shared generator.
            local_classifiers: the clients' own classifiers by client.
        """
        other = self._draw(product, draw=1, per_class=self._per_class_of_client)
        x = torch.from_numpy(other.x)
        y = torch.from_numpy(other.y)
        by_shared = self._shared_classifier.probabilities(x)
        weights = []
        for client, local in local_classifiers.items():
            importance = torch.from_numpy(self._client_shares(client))[y]
            weights.append(best_weight(local.probabilities(x), by_shared, y, importance))
        return weights

    def _weights_on_validation(
        self, local_classifiers: Mapping[int, LinearClassifier]
    ) -> list[float]:
        """Return the same weight for every client: the best one on their validation examples.

        It has the best mean accuracy over clients. A client without such examples counts as always
        wrong, at every weight. Accuracies are exact fractions of numbers of examples, so no
        rounding of their sum decides. Of equally good weights, the smallest is taken.

        Args:
            local_classifiers: the clients' own classifiers by client.
        """
        totals = [Fraction(0)] * len(TRIED_WEIGHTS)
        for client, local in local_classifiers.items():
            rows = self.partition.validation[client]
            x = torch.from_numpy(self.data.x_train[rows])
            y = torch.from_numpy(self.data.y_train[rows])
            for position, weight in enumerate(TRIED_WEIGHTS):
                both = Interpolated(local, self._shared_classifier, weight)
                correct = both.probabilities(x).argmax(1) == y
                totals[position] += Fraction(int(correct.sum()), max(len(y), 1))
        best = TRIED_WEIGHTS[totals.index(max(totals))]
        return [best] * len(local_classifiers)

    @property
    def _label_shares(self) -> NDArray[np.float64] | None:
        """The label frequencies that predictions are adapted to; None if there are none."""
        if is_classifier(self.product):
            return None
        return self.shares

    def _label_words(self) -> LabelShares | None:
        """Return where the label frequencies of plain accuracy are from."""
        if is_classifier(self.product):
            return None
        if self.shares is None:
            return "uniform"
        return "released"

    @cached_property
    def _synthetic(self) -> Labelled:
        """The embeddings of the shared generator."""
        assert not is_classifier(self.product)
        return self._draw(self.product)

    @cached_property
    def probe(self) -> Probe:
        """The linear probe that is fitted to the shared generator's embeddings."""
        return fit_probe(self._synthetic.x, self._synthetic.y, self._probe_c)

    @cached_property
    def _shared_classifier(self) -> LinearClassifier:
        """The probe as a linear classifier, which clients mix with their own one."""
        return folded(self.probe, self.data.classes)

    @property
    def _probe_c(self) -> float:
        """The inverse penalty of probes on synthetic embeddings."""
        data = self.data
        return self.cell.evaluation.synthetic_c(len(data.x_train), data.dim, data.classes)

    def _draw(
        self,
        generator: Generator,
        client: int = SERVER,
        draw: int = 0,
        per_class: int | None = None,
    ) -> Labelled:
        """Return synthetic embeddings, by default as many as the evaluation asks for."""
        data = self.data
        if per_class is None:
            per_class = self.cell.evaluation.rows_per_class(data.dim, data.classes)
        seeds = Seeds(self.cell.seed)
        x, y = synthesise(generator, data.classes, per_class, seeds, client, draw, self.device)
        return Labelled(x, y)

    @property
    def _per_class_of_client(self) -> int:
        """The number of synthetic embeddings per class where clients are evaluated one by one."""
        data = self.data
        most = MOST_CLIENT_SCORES // (self.cell.clients * data.classes**2)
        asked = self.cell.evaluation.rows_per_class(data.dim, data.classes)
        return min(asked, max(1, most))

    @cached_property
    def _test(self) -> Labelled:
        """The test rows that the shared generator or classifier is scored on."""
        rows = balanced_rows(self.data.y_test, MOST_TEST_ROWS)
        return Labelled(self.data.x_test[rows], self.data.y_test[rows])

    @cached_property
    def _client_test(self) -> Labelled:
        """The test rows on which clients are scored one by one."""
        rows = self._client_test_rows
        return Labelled(self.data.x_test[rows], self.data.y_test[rows])

    @property
    def _client_test_rows(self) -> Integers:
        """The numbers of the test rows on which clients are scored one by one."""
        most = most_per_client(self.cell.clients, self.data.classes)
        return balanced_rows(self.data.y_test, most)

    def _on_device(self, x: NDArray[np.float32]) -> Tensor:
        """Return rows ``[m, d]`` on the device."""
        return to_device(torch.from_numpy(x), self.device)

    def _predict_own_rows(
        self,
        client: int,
        classifier: Classifier,
        x_test: Tensor,
    ) -> Predictions:
        """Return a classifier's predictions for a client's own test rows.

        Args:
            client: the client, whose label frequencies go with the predictions.
            classifier: the classifier.
            x_test: the test rows of all clients ``[m, d]``, on the device of the classifier.
        """
        test = self.own_rows.rows[client]
        y = self._client_test.y[test]
        probabilities = classifier.probabilities(x_test[test])
        return predictions_of(probabilities, y, self._client_shares(client))

    @cached_property
    def own_rows(self) -> OwnRows:
        """Each client's own test rows, as positions in ``_client_test``."""
        return own_rows_among(
            self._client_test_rows,
            self.data,
            self.partition,
            self.cell.partition,
        )

    def _client_shares(self, client: int) -> NDArray[np.float64]:
        """Return the frequency of every class among all rows that a client holds, ``[C]``.

        Its validation rows count, because its test rows stand for all of its data.
        """
        y = self.data.y_train[self.partition.all_rows[client]]
        return np.bincount(y, minlength=self.data.classes) / max(len(y), 1)
