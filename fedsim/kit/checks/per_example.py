"""Check that a loss is per example, for algorithms that are a loss."""

from __future__ import annotations

from fedsim.errors import NotPerExample
from fedsim.kit.checks.subject import Subject
from fedsim.kit.checks.verdict import Verdict, failed, idle, passed
from fedsim.methods.dp_sgd import DPSGD
from fedsim.methods.local_dp_sgd import LocalDPSGD
from fedsim.methods.per_example import ROWS

ENGINE_FIX = (
    "mend what is named: a layer that uses the batch or draws by itself, or a parameter outside of a layer (which engine: vmap takes)"
)


def per_example(subject: Subject) -> Verdict:
    """On made-up rows."""
    if subject.plan is None or subject.trial.task.unit == "client" or not isinstance(subject.algorithm, DPSGD | LocalDPSGD):
        return idle("no loss whose examples are clipped one by one")
    try:
        subject.algorithm.check_contract()
    except NotPerExample as error:
        return failed(_shortened(error), error.remedy)
    except (ValueError, RuntimeError) as error:
        return failed(_shortened(error), ENGINE_FIX)
    return passed(f"leaving out each of {ROWS} made-up rows changes the sum by its own gradient")


def _shortened(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
