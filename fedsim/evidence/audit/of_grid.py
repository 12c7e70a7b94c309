"""The audits of a grid: one for every claim, whose bound every row of the claim shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedsim.errors import at
from fedsim.grid.models import Grid
from fedsim.results.run import claim_of
from fedsim.training.trial import Trial

if TYPE_CHECKING:
    from fedsim.evidence.audit.audit import Audit, AuditRun


@dataclass(frozen=True)
class ClaimAudit:
    """The audit of one claim, and the cells that make it.

    Attributes:
        label: what the algorithm is called.
        run: the audit.
        trials: the cells.
    """

    label: str
    run: AuditRun
    trials: tuple[Trial, ...]

    @property
    def epsilon(self) -> float:
        """The claim."""
        return self.run.setting.plan.epsilon_target


def audits_of(grid: Grid, trials: Sequence[Trial]) -> tuple[ClaimAudit, ...]:
    """An audit for every algorithm, its parameters, unit, trust and finite epsilon; cells of other data or seeds share it.

    Of a tuned cell the whole search is audited, with the scores that tell most of the unit.

    Raises:
        UserError: the grid asks for too few pairs.
    """
    if grid.audit is None:
        return ()
    # late, for few grids have audits, and what they compute with takes most of a second to import
    from fedsim.evidence.audit.audit import AuditRun, check_pairs
    from fedsim.evidence.audit.setting import brief, setting_of, tuned_setting

    with at(grid.place("audit")):
        check_pairs(grid.audit.pairs, grid.delta)
    cells: dict[str, list[Trial]] = {}
    for trial in trials:
        free = trial.cell.tuning is not None and trial.cell.tuning.free  # claims nothing that an audit could refute
        if trial.plan is not None and math.isfinite(trial.plan.epsilon_target) and not free:
            cells.setdefault(_claim_of(trial), []).append(trial)
    audits = []
    for own in cells.values():
        cell = own[0].cell
        short = brief(cell.algorithm) | ({"rounds": grid.audit.rounds} if "rounds" in cell.params else {})
        setting = setting_of(cell.algorithm, {**cell.params, **short}, cell.unit, cell.trust, float(cell.epsilon or 0), cell.delta)
        if cell.tuning is not None:
            setting = tuned_setting(setting, cell.tuning, short)
        audits.append(ClaimAudit(cell.label, AuditRun(setting, "white-box", grid.audit.pairs), tuple(own)))
    return tuple(audits)


def audit_line(claim: ClaimAudit, audit: Audit) -> dict[str, Any]:
    """The result line of an audit; ``params`` are those that it changed to be short, and what they were there."""
    cell = claim.trials[0].cell
    return {
        "audit": claim.run.key,
        "claim": _claim_of(claim.trials[0]),
        "epsilon_lower": audit.mechanism,
        "epsilon_any": audit.clopper_pearson,
        "method": audit.method,
        "pairs": audit.pairs,
        "canary_ratio": audit.printed_ratio,
        "refuted": audit.refuted,
        "params": {name: value for name, value in audit.params.items() if cell.params.get(name, audit) != value},
    }


def _claim_of(trial: Trial) -> str:
    return claim_of(trial.cell.model_dump(mode="json"))
