"""Solved budgets on disk: a noise multiplier, which takes seconds to solve for, is solved for once a machine.

A file holds the solution of one budget by one version of the code. It is no proof: a training's ledger counts what was spent, with the
accountant, and a row that spent more than its target is ``overspent``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

from fedsim.files import cache_folder, replaced
from fedsim.privacy.counted_by import counted_by
from fedsim.privacy.mechanism import Mechanism

Mechanisms = tuple[Mechanism, ...]
"""With relative noise in place of a noise multiplier."""
Solution = tuple[float, float, str]
"""Noise multiplier, epsilon reached, accountant."""
Solver = Callable[[float, float, Mechanisms], Solution]


def kept(solve: Solver, epsilon: float, delta: float, mechanisms: Mechanisms) -> Solution:
    """``solve(epsilon, delta, mechanisms)``, from its file if there is one; if the folder cannot be written, it is only slower."""
    question = json.dumps([counted_by(), epsilon, delta, [astuple(one) for one in mechanisms]])
    path = cache_folder() / "plans" / f"{hashlib.sha256(question.encode()).hexdigest()[:32]}.json"
    if (stored := _read(path, epsilon)) is not None:
        return stored
    solution = solve(epsilon, delta, mechanisms)
    try:
        with replaced(path) as part:
            part.write_text(json.dumps(solution) + "\n", encoding="utf-8")
    except OSError:
        pass
    return solution


def _read(path: Path, epsilon: float) -> Solution | None:
    """The solution in a file; None if there is no file, or its content cannot be a solution."""
    try:
        sigma, reached, accountant = json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):
        return None
    numbers = isinstance(sigma, float) and isinstance(reached, float) and math.isfinite(sigma)
    return (sigma, reached, accountant) if numbers and sigma > 0 and 0 <= reached <= epsilon and accountant in ("prv", "rdp") else None
