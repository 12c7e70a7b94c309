"""What is seen of a bench where there is no terminal, and that a terminal is left as it was."""

import io
from contextlib import suppress
from typing import Any

import pytest
from rich.console import Console

from fedsim.results.columns import Row
from fedsim.runs import display
from fedsim.runs.display import Display

ERROR = {
    "type": "ValueError",
    "message": "a [bold] reason\nsecond line",
    "traceback": "Traceback ...",
}


def row(cell_id: str, status: str = "ok", **fields: Any) -> Row:
    base = {
        "cell_id": cell_id,
        "status": status,
        "algorithm": "alg",
        "label": "alg",
        "params": {},
        "dataset": "digits",
    }
    base |= {"alpha": 0.1, "clients": 10, "seed": 2, "epsilon_target": 4.0, "epsilon_spent": 3.98}
    if status == "failed":
        base |= {"error": ERROR}
    else:
        base |= {"accuracy": 0.8, "balanced_accuracy": 0.812, "macro_f1": 0.8}
    return Row(base | fields)


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def printed(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def test_failures_are_lines_and_the_end_counts_every_cell() -> None:
    where = console()
    with Display(where, 6, {"ok": 1, "refuted": 1}) as shown:
        for cell in "abc":
            shown.cell_started(cell, "alg")
            shown.round_done(cell, 1, 5)
        shown.cell_queued("c")
        shown.cell_finished(row("a"))
        shown.cell_finished(row("b", "failed"))
        shown.cell_finished(row("c", "overspent", epsilon_spent=9.0))
    failed, overspent, end = printed(where)
    assert (
        failed
        == "alg · digits · α = 0.1 · 10 clients · ε = 4 · seed 2: failed, ValueError: a [bold] "
        "reason"
    )
    assert overspent.endswith("overspent (balanced accuracy 0.812, ε spent 9 of 4)")
    assert end == "2 of 6 cells done, 1 refuted, 1 failed, 1 overspent, 1 not finished in 0:00:00"


def test_progress_lines_without_a_terminal_count_and_estimate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(display, "EVERY", 0.0)
    where = console()
    with Display(where, 4) as shown:
        for cell in "ab":
            shown.cell_started(cell, "alg")
        shown.tick()
        for cell in "ab":
            shown.cell_finished(row(cell))
        shown.tick()
    first, second, _ = printed(where)
    assert first == "0 of 4 cells finished, 2 running, 0:00:00 gone"
    assert second.startswith("2 of 4 cells finished, 0 running, 0:00:00 gone, about 0:00:0")


def test_jobs_beside_the_cells_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "EVERY", 0.0)
    where = console()
    with Display(where, 4) as shown:
        shown.job_started(("ceiling", "1"), "the ceiling reference")
        shown.tick()
        for line in "23":
            shown.job_started(("local-only", line), "the local-only reference")
        shown.cell_started("a", "alg")
        shown.tick()
        shown.job_ended(("ceiling", "1"))
        shown.tick()
    first, second, third, _ = printed(where)
    assert first.startswith("0 of 4 cells finished, the ceiling reference running, ")
    assert second.startswith(
        "0 of 4 cells finished, 1 cell, the ceiling reference and 2 × the local-only reference "
        "running, "
    )
    assert third.startswith(
        "0 of 4 cells finished, 1 cell and 2 × the local-only reference running, "
    )


def test_audits_are_counted_while_they_run_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "EVERY", 0.0)
    where = console()
    with Display(where, 4, {"ok": 4}, audits=3, audits_ended=1) as shown:
        shown.job_started(("audit", "k"), "the audit of alg at ε = 4")
        shown.job_progress(("audit", "k"), 20, 500)
        shown.tick()
        shown.audit_finished()
        shown.job_ended(("audit", "k"))
    running, end = printed(where)
    assert running.startswith(
        "4 of 4 cells and 1 of 3 audits finished, the audit of alg at ε = 4 (20 of 500 pairs) "
        "running, "
    )
    assert end == "4 of 4 cells done, 2 of 3 audits done in 0:00:00"


def test_a_terminal_shows_a_bar_of_audits_and_the_pairs_of_each() -> None:
    where = console(terminal=True)
    with Display(where, 1, audits=3, audits_ended=1) as shown:
        shown.job_started(("audit", "k"), "the audit of alg")
        shown.job_progress(("audit", "k"), 20, 500)
    text = where.file.getvalue()  # type: ignore[attr-defined]
    assert "audits" in text
    assert "1/3" in text
    assert "20/500" in text


def test_terminal_shows_running_cells_and_is_restored() -> None:
    where = console(terminal=True)
    with suppress(KeyboardInterrupt), Display(where, 2) as shown:
        shown.cell_started("a", "alg [one]")
        raise KeyboardInterrupt
    text = where.file.getvalue()  # type: ignore[attr-defined]
    assert "alg [one]" in text
    assert 0 <= text.rfind("\x1b[?25l") < text.rfind("\x1b[?25h")
    assert "0 of 2 cells done, 2 not finished in 0:00:00" in text
