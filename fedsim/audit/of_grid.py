"""The audits of a grid: one for every claim, whose bound every row of the claim shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedsim.errors import at
from fedsim.grid.models import Grid
from fedsim.results.lines import dump
from fedsim.results.rows import Row
from fedsim.simulation.trial import Trial

if TYPE_CHECKING:
    from fedsim.audit.audit import Audit
    from fedsim.audit.run import AuditRun


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

    Raises:
        UserError: the grid asks for too few pairs.
    """
    if grid.audit is None:
        return ()
    # late, for few grids have audits, and what they compute with takes most of a second to import
    from fedsim.audit.audit import check_pairs
    from fedsim.audit.run import AuditRun
    from fedsim.audit.setting import brief, setting_of

    with at(grid.place("audit")):
        check_pairs(grid.audit.pairs, grid.delta)
    cells: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.plan is not None and math.isfinite(trial.plan.epsilon_target):
            cells.setdefault(dump([trial.cell.algorithm, trial.cell.params, trial.plan.epsilon_target]), []).append(trial)
    found = []
    for own in cells.values():
        cell = own[0].cell
        short = brief(cell.algorithm) | ({"rounds": grid.audit.rounds} if "rounds" in cell.params else {})
        setting = setting_of(cell.algorithm, {**cell.params, **short}, cell.unit, cell.trust, float(cell.epsilon or 0), cell.delta)
        found.append(ClaimAudit(cell.label, AuditRun(setting, "white-box", grid.audit.pairs), tuple(own)))
    return tuple(found)


def is_told(row: Row, pairs: int) -> bool:
    """Whether a row shows an audit of so many pairs, or needs none."""
    return row.status not in ("ok", "refuted") or row.audit_pairs == pairs


def audited_row(row: Row, audit: Audit) -> Row:
    """A row with what an audit says of its claim; the row itself where it is already known not to hold."""
    if row.status not in ("ok", "refuted"):
        return row
    facts = {
        "audit_epsilon_lower": audit.mechanism,
        "audit_epsilon_any": audit.clopper_pearson,
        "audit_method": audit.method,
        "audit_pairs": audit.pairs,
        "audit_canary_ratio": audit.told_ratio,
        "audit_params": {name: value for name, value in audit.params.items() if name not in row.params or row.params[name] != value},
        "status": "refuted" if audit.refuted else "ok",
    }
    return row.model_copy(update=facts)


def unaudited(row: Row) -> Row:
    """The row as its cell made it."""
    told = {name: None for name in Row.model_fields if name.startswith("audit_")}
    return row.model_copy(update=told | ({"status": "ok"} if row.status == "refuted" else {}))
