"""From how a cell ended to its row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from fedsim.evaluation.judge import Judgement
from fedsim.evaluation.references import Ceiling, LocalOnly
from fedsim.evaluation.scores import Scores
from fedsim.grid.models import Cell, shown
from fedsim.plugins.code_hash import module_hash
from fedsim.plugins.registry import lookup
from fedsim.privacy.counted_by import counted_by
from fedsim.privacy.ledger import Tally
from fedsim.privacy.plan import PrivacyPlan
from fedsim.results.rows import Mechanism, Row, RowError, Status
from fedsim.training.trial import Outcome, Trial

JUDGES = ("fedsim.evaluation.judge", "fedsim.evaluation.references")
"""What decides scores and references."""


def judging_code() -> str:
    """The hash of the code that judges."""
    return module_hash(*JUDGES)


def finished_row(trial: Trial, outcome: Outcome, ceiling: Ceiling | None, local_only: LocalOnly | None, versions: dict[str, str]) -> Row:
    """The row of a cell that ran to its end.

    Args:
        trial: the cell.
        outcome: what became of it.
        ceiling: the reference; None where it could not be computed.
        local_only: the same.
        versions: of the packages that computed.
    """
    target, spent = trial.cell.epsilon, outcome.epsilon_spent
    if outcome.unaccounted:
        error = RowError(type="Unaccounted", message=outcome.unaccounted, traceback="")
        return _row(trial, "unaccounted", error, outcome, ceiling, local_only, versions)
    overspent = target is not None and spent is not None and spent > target * (1 + 1e-6)
    return _row(trial, "overspent" if overspent else "ok", None, outcome, ceiling, local_only, versions)


def failed_row(trial: Trial, error: RowError, versions: dict[str, str]) -> Row:
    """The row of a cell that raised or was lost."""
    return _row(trial, "failed", error, None, None, None, versions)


def client_lines(cell: Cell, judgement: Judgement, local_only: LocalOnly | None) -> Iterator[dict[str, Any]]:
    """What is told of every client of a cell that was judged by clients: its scores on its own test rows."""
    floors = local_only.clients if local_only else (None,) * cell.clients
    for each in judgement.clients:
        line: dict[str, Any] = {"cell_id": cell.cell_id, "client": each.client, "name": each.name}
        line |= {"rows": each.rows, "test_rows": each.test_rows}
        for whose, scores in (("own", each.own), ("shared", each.shared)):
            line |= {f"{whose}_{name}": scores[name] if scores else None for name in ("accuracy", "balanced_accuracy")}
        yield line | {"local_only_balanced_accuracy": floors[each.client]} | ({} if each.test_rows else {"reason": "it has no test row"})


def refilled(
    row: Row, clients: list[dict[str, Any]], ceiling: Ceiling | None, local_only: LocalOnly | None
) -> tuple[Row, list[dict[str, Any]]]:
    """A finished row and its clients' lines with references that were computed later."""
    scores, lines = dict(row.scores), clients
    if local_only:
        lines = [line | {"local_only_balanced_accuracy": local_only.clients[line["client"]]} for line in clients]
        scores |= _floor([line["local_only_balanced_accuracy"] for line in lines])
    return row.model_copy(update={"scores": scores, **reference_fields(ceiling, local_only)}), lines


def judged_fields(judgement: Judgement, local_only: LocalOnly | None) -> dict[str, Any]:
    """The fields of a row that judging decides, not training."""
    return {
        "judged": judging_code(),
        "tested": judgement.tested,
        "label_shares": judgement.label_shares,
        "scores": Scores(judgement.scores, **_floor(local_only.clients if judgement.clients and local_only else ())),
        "recall_per_class": judgement.recalls,
    }


def reference_fields(ceiling: Ceiling | None, local_only: LocalOnly | None) -> dict[str, Any]:
    """The fields of a row that references decide; none of one that could not be computed."""
    fields: dict[str, Any] = {"referenced": judging_code()} if ceiling and local_only else {}
    if ceiling:
        fields |= {"ceiling_balanced_accuracy": ceiling.balanced_accuracy, "ceiling_accuracy": ceiling.accuracy}
    return fields | ({"local_only_balanced_accuracy": local_only.mean} if local_only else {})


def _floor(clients: Sequence[float | None]) -> dict[str, float]:
    """What clients have by themselves, where they are judged one by one: a score of the row."""
    known = [score for score in clients if score is not None]
    return {"client_local_only_balanced_accuracy": float(np.mean(known))} if known else {}


def told_fields(cell: Cell, plan: PrivacyPlan | None, classes: int) -> dict[str, Any]:
    """The fields of a row that its cell and its plan decide."""
    return {
        "cell_id": cell.cell_id,
        "source": cell.source,
        "algorithm": cell.algorithm,
        "label": cell.label,
        "params": cell.params,
        "dataset": shown(cell.dataset, cell.evaluation.unseen),
        "dataset_hash": cell.dataset_hash,
        "scheme": cell.partition.scheme,
        "alpha": cell.concentration,
        "clients": cell.clients,
        "seed": cell.seed,
        "epsilon_target": plan.epsilon_target if plan else None,
        "delta": plan.delta if plan else None,
        "unit": cell.unit_name if plan else None,
        "relation": "add-or-remove-one" if plan else None,
        "trust": plan.trust if plan else None,
        "scope": plan.scope if plan else None,
        "claim": plan.claim if plan else "none",
        "noise": cell.noise if plan else None,
        "sigma": plan.sigma if plan else None,
        "sample_rate": plan.main.sample_rate if plan else None,
        "steps": sum(release.steps for release in plan.releases) if plan else None,
        "clip": plan.clip if plan else None,
        "sensitivity": plan.sensitivity if plan else None,
        "chance": 1 / classes,
    }


def planned_mechanisms(plan: PrivacyPlan) -> tuple[Mechanism, ...]:
    """What a row holds where the ledger is the plan's."""
    tallies = [Tally(0, r.name, plan.noise_multiplier(r.name), r.sample_rate, r.steps) for r in plan.releases if r.steps]
    return _mechanisms(sorted(tallies)) or ()


def _mechanisms(tallies: Iterable[Tally] | None) -> tuple[Mechanism, ...] | None:
    if tallies is None:
        return None
    return tuple(
        Mechanism(
            release=tally.release,
            kind="gaussian" if tally.sample_rate == 1 else "sampled-gaussian",
            noise_multiplier=tally.noise_multiplier,
            sample_rate=tally.sample_rate,
            count=tally.count,
        )
        for tally in tallies
    )


def _row(
    trial: Trial,
    status: Status,
    error: RowError | None,
    outcome: Outcome | None,
    ceiling: Ceiling | None,
    local_only: LocalOnly | None,
    versions: dict[str, str],
) -> Row:
    cell, plan = trial.cell, trial.plan
    # A ledger that is not the plan's is no base for an epsilon.
    accounted = None if error else outcome
    return Row(
        **told_fields(cell, plan, trial.task.classes),
        status=status,
        error=error,
        yields="generator" if lookup(cell.algorithm).generates() else "classifier",
        partition_hash=trial.partition.fingerprint,
        train_rows=trial.train_rows,
        train_groups=trial.train_groups if plan else None,
        epsilon_spent=accounted.epsilon_spent if accounted else None,
        accountant=outcome.accountant if outcome else None,
        mechanisms=_mechanisms(accounted.mechanisms) if accounted else None,
        noise_at=accounted.noise_at if accounted else None,
        counted_by=counted_by() if plan and accounted else None,
        evaluation=cell.evaluation.model_dump(mode="json", exclude={"unseen"}, exclude_none=True),
        unseen=cell.evaluation.unseen,
        **(judged_fields(outcome.judgement, local_only) if outcome else {}),
        **reference_fields(ceiling, local_only),
        uplink_bytes=outcome.uplink_bytes if outcome else None,
        seconds=outcome.seconds if outcome else None,
        versions=versions,
    )
