"""Check that a loss is per example, for algorithms that are a loss."""

from __future__ import annotations

from fedsim.kit.checks.subject import Subject
from fedsim.kit.checks.verdict import Verdict, failed, idle, passed
from fedsim.methods.per_example import PER_EXAMPLE, ROWS, check_loss, clips_examples
from fedsim.privacy.clipping import NotPerExample

ENGINE_FIX = (
    "mend what is named: a layer that uses the batch or draws by itself, or a parameter outside of a layer (which engine: vmap takes)"
)


def per_example(subject: Subject) -> Verdict:
    """On made-up rows."""
    if subject.plan is None or not clips_examples(subject.algorithm):
        return idle("no loss whose examples are clipped one by one")
    try:
        check_loss(subject.algorithm)
    except NotPerExample as error:
        return failed(_shortened(error), PER_EXAMPLE)
    except (ValueError, RuntimeError) as error:
        return failed(_shortened(error), ENGINE_FIX)
    return passed(f"leaving out each of {ROWS} made-up rows changes the sum by its own gradient")


def _shortened(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
