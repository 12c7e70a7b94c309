"""Declares the records of a run folder: the keys of every kind of result line.

A record is one line of JSON. :class:`fedsim.results.store.ResultStore` appends it to the file of
its kind and reads it again. A line may lack a key that is ``NotRequired``, and any key of a record
with ``total=False``. The docstring of the record says which lines do. Seconds are wall time.
"""

# The annotations are evaluated at once (no ``from __future__ import annotations``). Otherwise
# ``__required_keys__`` would include the keys that are NotRequired.
from typing import Any, Literal, NotRequired, TypedDict

Fields = dict[str, Any]
"""The fields of an object by their names, as plain values."""


class LedgerRecord(TypedDict, total=False):
    """What the ledger of a private training counted; a part of :class:`TrainingRecord`.

    If the steps that ran are not those of the plan, no ε is known. The record then has only its
    first two keys. In a file no value is None. The types allow None because those of
    :class:`fedsim.training.trial.Outcome` do.

    Attributes:
        unaccounted: The first difference between the ledger and the plan; "" if there is none.
        accountant: The name of the accountant that computed ε.
        epsilon_spent: The ε of the steps that ran.
        mechanisms: The mechanisms that ran on the data of every client, each with the fields of
            :class:`fedsim.privacy.mechanism.Mechanism`.
        noise_at: Where noise was added: once to the ``sum``, or by each of the ``clients``.
        counted_by: The revision of the accounting code.
    """

    unaccounted: str
    accountant: str | None
    epsilon_spent: float | None
    mechanisms: list[Fields] | None
    noise_at: str | None
    counted_by: str


class TrainingRecord(TypedDict):
    """A line of ``trainings.jsonl``: a training that ended or failed.

    The job of a cell writes it. From ``trials`` to ``seconds`` the values of a failed training are
    None, and so is its ledger.

    Attributes:
        training_id: The id of the training, see :class:`fedsim.grid.models.Cell`.
        error: Why it failed, with the keys of :class:`fedsim.results.lines.RowError`; None if it
            did not.
        cell: The cell, with the fields of :class:`fedsim.grid.models.Cell`. After the search of a
            tuned cell, its parameters are those that the search chose.
        task: The public facts that the algorithm got, with the fields of
            :class:`fedsim.methods.messages.Task` except ``public``.
        plan: The plan of the budget, with the fields of
            :class:`fedsim.privacy.plan.PrivacyPlan`; None for a method without privacy.
        dataset: The name that tables give the data set.
        alpha: The Dirichlet concentration; None for a partition scheme without one.
        yields: What the algorithm produces: ``generator`` or ``classifier``.
        partition: The fingerprint of the partition.
        train_rows: The number of training examples of all clients.
        train_groups: The number of groups of these examples; None unless the unit is a group.
        ledger: What the ledger counted; None without a plan.
        trials: For a tuned cell the number of its trainings; None for any other.
        uplink_bytes: The bytes that all clients sent in all rounds.
        downlink_bytes: The bytes that all clients received in all rounds.
        parameters: How many numbers one client trains.
        seconds: The seconds of the training.
        versions: The versions of Python and of the packages that computed, by name.
        class_names: The names of the classes; empty if the data set names none.
        state: The SHA-256 of the file of tensors that the training left; None if none was kept.
        equal_to: The id of the training that ran in place of this one, if both results are equal
            by construction; None if this training ran itself. Older lines lack the key.
    """

    training_id: str
    error: dict[str, str] | None
    cell: Fields
    task: Fields
    plan: Fields | None
    dataset: str
    alpha: float | None
    yields: str
    partition: str
    train_rows: int
    train_groups: int | None
    ledger: LedgerRecord | None
    trials: int | None
    uplink_bytes: int | None
    downlink_bytes: int | None
    parameters: int | None
    seconds: float | None
    versions: dict[str, str]
    class_names: list[str]
    state: str | None
    equal_to: NotRequired[str | None]


class ClientRecord(TypedDict):
    """The scores of one client; a part of :class:`ScoresRecord`.

    Attributes:
        client: The number of the client.
        name: The name of its site, or its number as a text.
        rows: The number of its training examples.
        test_rows: The number of its test examples.
        own_accuracy: The accuracy of its own generator or classifier; None without test examples.
        own_balanced_accuracy: The balanced accuracy of the same.
        shared_accuracy: The accuracy of the generator or classifier that all clients share; None
            without test examples, or if clients share none.
        shared_balanced_accuracy: The balanced accuracy of the same.
    """

    client: int
    name: str
    rows: int
    test_rows: int
    own_accuracy: float | None
    own_balanced_accuracy: float | None
    shared_accuracy: float | None
    shared_balanced_accuracy: float | None


class ScoresRecord(TypedDict, total=False):
    """The scores of a cell; a part of :class:`EvaluationRecord`.

    Attributes:
        tested: Which test examples each client's own scores are computed on; None if no client is
            evaluated.
        label_shares: The label frequencies of plain accuracy: those that the algorithm
            ``released``, or ``uniform`` ones; None for a classifier.
        scores: The scores by the names of their measures.
        recalls: The recall of each class; None for a class without test examples.
        clients: The scores of every client; empty if clients are not evaluated one by one.
    """

    tested: str | None
    label_shares: str | None
    scores: dict[str, float]
    recalls: list[float | None]
    clients: list[ClientRecord]


class EvaluationRecord(ScoresRecord):
    """A line of ``evaluations.jsonl``: an evaluation that ended or failed.

    The job of a cell writes it. A failed evaluation has none of the keys of its scores.

    Attributes:
        cell_id: The id of the cell, see :class:`fedsim.grid.models.Cell`.
        training_id: The id of the training that was evaluated.
        evaluation: How it was evaluated, with the keys of the grid's ``evaluation`` that are set.
        evaluation_source: The hash of the code that evaluated.
        seconds: The seconds of the evaluation; 0 if it failed.
        error: Why it failed, with the keys of :class:`fedsim.results.lines.RowError`; None if it
            did not.
    """

    cell_id: str
    training_id: str
    evaluation: Fields
    evaluation_source: str
    seconds: float
    error: dict[str, str] | None


class ReferenceRecord(TypedDict):
    """A line of ``references.jsonl``: the scores of probes that were trained on real data.

    The job of a reference writes it. A ceiling has ``balanced_accuracy`` and ``accuracy``; a
    local-only reference has ``mean`` and ``clients``.

    Attributes:
        reference: The key of the reference, which is in the entry of every cell that uses it.
        kind: Which reference it is: ``ceiling`` or ``local-only``.
        balanced_accuracy: The best balanced accuracy of a probe trained on the examples of all
            clients.
        accuracy: The best accuracy of such a probe.
        mean: The mean over clients of the balanced accuracy of a probe trained on the client's own
            examples, on all test examples.
        clients: The balanced accuracy of each client's probe on the client's test examples; None
            for a client without test examples or without a probe.
        reference_rows: The number of training examples of the probes.
        seconds: The seconds that the reference took.
    """

    reference: str
    kind: str
    balanced_accuracy: NotRequired[float]
    accuracy: NotRequired[float]
    mean: NotRequired[float]
    clients: NotRequired[list[float | None]]
    reference_rows: int
    seconds: float


class AuditRecord(TypedDict):
    """A line of ``audits.jsonl``: the outcome of an audit of a grid's claim.

    The job of an audit writes it.

    Attributes:
        audit: The key of the audit. The lines of its pairs of trainings have the same key.
        claim: The key of the claim, see :func:`fedsim.results.join.claim_of`.
        epsilon_lower: The largest ε that the audit refutes, at a confidence of 95 %.
        pairs: The number of pairs of trainings.
        canary_ratio: What the canary adds to a step, divided by the claimed sensitivity: the
            largest value if it exceeds the claim, else the root mean square over all steps.
        refuted: Whether the audit refutes the claim.
        params: The parameters that the audit changed to make trainings short, with their values.
    """

    audit: str
    claim: str
    epsilon_lower: float
    pairs: int
    canary_ratio: float
    refuted: bool
    params: Fields


class TrainingPair(TypedDict):
    """The results of two trainings of an audit, one without the canary and one with it.

    Attributes:
        pair: The number of the pair, from 0.
        absent: The log likelihood ratio of the training without the canary.
        present: The log likelihood ratio of the training with it.
        ratio: The root mean square over steps of what the canary adds, divided by the claimed
            sensitivity.
        most: The most that the canary adds to a step, divided by the claimed sensitivity.
    """

    pair: int
    absent: float
    present: float
    ratio: float
    most: float


class PairRecord(TrainingPair):
    """A line of ``pairs.jsonl``: one pair of trainings of an audit.

    The job of an audit writes it, and so does ``fedsim audit``.

    Attributes:
        audit: The key of the audit.
    """

    audit: str


class MembershipRecord(TypedDict):
    """A line of ``memberships.jsonl``: an attack on the saved generator of a training.

    ``fedsim audit`` of a run folder writes it.

    Attributes:
        training_id: The id of the training.
        auc: The larger area under the ROC curve of the two membership inference attacks; guessing
            has 0.5.
    """

    training_id: str
    auc: float


class CheckRecord(TypedDict):
    """A line of ``checks.jsonl``: how the check of an algorithm ended in one unit and trust.

    The job of a check writes it, and so does ``fedsim check`` with a run folder.

    Attributes:
        algorithm: The name of the algorithm as the grid gives it.
        source: The hash of the code that was checked. Cells of this code have the same hash.
        unit: The unit of the check.
        trust: The trust of the check.
        params: The parameters for which the check was asked.
        tried: The parameters with which it trained. Older lines lack the key.
        check: The hash of the code that checked.
        full: Whether the check was a full one, not a quick one.
        ended: How it ended.
    """

    algorithm: str
    source: str
    unit: str
    trust: str
    params: Fields
    tried: NotRequired[Fields]
    check: str
    full: bool
    ended: Literal["passed", "failed"]


class RoundLine(TypedDict):
    """A line of ``rounds.jsonl``: the diagnostics of one round, which no ε covers.

    The job of a cell writes it, from a :class:`fedsim.training.rounds.RoundRecord`. A line has more
    keys than these: the diagnostics of its method by their names, and for a tuned cell
    ``training``, the number of the training, from 1.

    Attributes:
        training_id: The id of the training.
        round: The number of the round, from 0.
        release: The name of the round's release.
        main: Whether the round is one of the training itself, not before or after it.
        sampled: A fingerprint of the sampled examples.
        noise: A fingerprint of the noise that was added.
        signal_norm: The L2 norm of all sums over clients before noise.
        noise_norm: The L2 norm of the noise that the server added.
    """

    training_id: str
    round: int
    release: str
    main: bool
    sampled: int
    noise: int
    signal_norm: float
    noise_norm: float
