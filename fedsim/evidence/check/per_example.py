"""Check that a loss or a statistic is per example, for algorithms that are one."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

from fedsim.errors import NotPerExample
from fedsim.evidence.check.subject import Subject
from fedsim.evidence.check.verdict import Verdict, failed, idle, passed, raised
from fedsim.methods.contract import CROWD_ROWS, TRIED_ROWS
from fedsim.methods.dp_sgd import DPSGD
from fedsim.methods.local_training import LocalDPSGD
from fedsim.methods.one_shot import OneShot
from fedsim.plugins.places import FEDSIM
from fedsim.training import rehearsal

ENGINE_FIX = (
    "mend what is named: a layer that uses the batch or draws by itself, or a parameter outside of a layer (which engine: vmap takes)"
)
TORCH = Path(torch.__file__).parent


def per_example(subject: Subject) -> Verdict:
    """On made-up rows."""
    task, plan, cell = subject.trial.task, subject.plan, subject.trial.cell
    if plan is None or subject.algorithm.clips_clients() or not isinstance(subject.algorithm, DPSGD | LocalDPSGD | OneShot):
        return idle("no loss or statistic whose examples are clipped one by one")
    if isinstance(subject.algorithm, OneShot):
        try:
            rehearsal.train_rehearsed(rehearsal.made_up_cohort(cell.algorithm, cell.params, task, plan, rehearsal.MADE_UP_ROWS), plan)
        except NotPerExample as error:
            return failed(_shortened(error), error.remedy)
        return passed(f"1 to {CROWD_ROWS} made-up rows of one label add what each of them adds")
    try:
        subject.algorithm.check_contract(next(subject.algorithm.schedule()), {})
    except NotPerExample as error:
        return failed(_shortened(error), error.remedy)
    except (ValueError, RuntimeError) as error:
        return failed(_shortened(error), ENGINE_FIX) if _is_engines(error) else raised(error, type(subject.algorithm))
    return passed(f"leaving out each of {TRIED_ROWS} made-up rows changes the sum by its own gradient")


def _is_engines(error: Exception) -> bool:
    """Whether fedsim refused what the method gave it; else an exception of the method itself, or of torch on its behalf."""
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    return next(file for file in reversed(files) if not file.is_relative_to(TORCH)).is_relative_to(FEDSIM)


def _shortened(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
