"""Records of trainings, edits of them, and their proofs."""

from collections.abc import Callable
from typing import Any

from cells import small_cells
from rows import as_planned, lines_of

from fedsim.evidence.prove import Proof, prove
from fedsim.json_lines import decode, dump, load
from fedsim.privacy.accountant import epsilon
from fedsim.privacy.mechanism import Mechanism
from fedsim.results.columns import row_of

Line = dict[str, Any]
Edit = Callable[[Line], None]


def record(entry: Any, **keys: Any) -> str:
    """Return the line of a training that did just what was planned."""
    (trial,) = small_cells(entry, epsilon=4.0, **keys).trials
    (line,) = lines_of(trial, as_planned(trial)).trainings.values()
    return dump(line)


def edited(text: str, *edits: Edit) -> Line:
    """Return a line after some edits."""
    line: Line = decode(load(text))
    for edit in edits:
        edit(line)
    return line


def proof_of(text: str, *edits: Edit, trust_plugin: bool = False) -> Proof:
    """Return the proof of a line after some edits."""
    line = edited(text, *edits)
    return prove(row_of("c", "label", line), line, trust_plugin=trust_plugin)


def put(**values: Any) -> Edit:
    """Put values at places of a line, which are named ``cell__unit``."""

    def edit(line: Line) -> None:
        for place, value in values.items():
            *parts, key = place.split("__")
            part = line
            for name in parts:
                part = part[name]
            part[key] = value

    return edit


def ran(
    noise: float = 1.0,
    rate: float = 1.0,
    count: int | None = None,
    first: int = -1,
) -> Edit:
    """Change the ledger's mechanisms from number ``first`` on, and the epsilon of all."""

    def edit(line: Line) -> None:
        ledger = line["ledger"]
        for mechanism in ledger["mechanisms"][first:]:
            mechanism["noise_multiplier"] *= noise
            mechanism["sample_rate"] *= rate
            mechanism["count"] = count or mechanism["count"]
        mechanisms = [Mechanism(**mechanism) for mechanism in ledger["mechanisms"]]
        ledger["epsilon_spent"], _ = epsilon(mechanisms, line["plan"]["delta"])

    return edit


def planned_and_ran(
    noise: float = 1.0,
    rate: float = 1.0,
    count: int | None = None,
) -> Edit:
    """Change all mechanisms in plan and ledger alike, and their epsilon."""

    def edit(line: Line) -> None:
        ran(noise, rate, count, first=0)(line)
        plan = line["plan"]
        plan["sigma"] *= noise
        for release in plan["releases"]:
            release["sample_rate"] *= rate
            release["steps"] = count or release["steps"]
            release["per_round"] = 1
        plan["epsilon_reached"] = line["ledger"]["epsilon_spent"]

    return edit
