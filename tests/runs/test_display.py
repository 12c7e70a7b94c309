"""The lines of a bench where there is no terminal, and a terminal that is left as it was."""

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
ROW = {
    "status": "ok",
    "algorithm": "alg",
    "label": "alg",
    "params": {},
    "dataset": "digits",
    "alpha": 0.1,
    "clients": 10,
    "seed": 2,
    "epsilon_target": 4.0,
    "epsilon_spent": 3.98,
    "balanced_accuracy": 0.812,
}
CEILING = ("ceiling", "1")
AUDIT = ("audit", "k")


@pytest.fixture(autouse=True)
def _always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tick prints its line."""
    monkeypatch.setattr(display, "EVERY", 0.0)


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def printed(where: Console) -> str:
    return where.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def ended(shown: Display, cell: str, **fields: Any) -> None:
    shown.job_ended(("cell", cell))
    shown.cell_finished(Row(ROW | {"cell_id": cell} | fields))


def test_failures_are_lines_and_the_end_counts_every_cell() -> None:
    where = console()
    with Display(where, 6, {"ok": 1, "refuted": 1}) as shown:
        for cell in "abc":
            shown.job_started(("cell", cell), "alg")
            shown.job_progress(("cell", cell), 1, 5)
        ended(shown, "a")
        ended(shown, "b", status="failed", error=ERROR)
        ended(shown, "c", status="overspent", epsilon_spent=9.0)
    failed, overspent, end = printed(where).splitlines()
    setting = "alg · digits · α = 0.1 · 10 clients · ε = 4 · seed 2"
    assert failed == f"{setting}: failed, ValueError: a [bold] reason"
    assert overspent.endswith("overspent (balanced accuracy 0.812, ε spent 9 of 4)")
    assert end == "2 of 6 cells done, 1 refuted, 1 failed, 1 overspent, 1 not finished in 0:00:00"


def test_line_counts_cells_and_estimates_the_time_left() -> None:
    where = console()
    with Display(where, 4) as shown:
        for cell in "ab":
            shown.job_started(("cell", cell), "alg")
        shown.tick()
        for cell in "ab":
            ended(shown, cell)
        shown.tick()
    first, second, _ = printed(where).splitlines()
    assert first == "0 of 4 cells finished, 2 cells running, 0:00:00 elapsed"
    assert second.startswith(
        "2 of 4 cells finished, nothing running, 0:00:00 elapsed, about 0:00:0"
    )


def test_line_names_the_jobs_beside_the_cells() -> None:
    where = console()
    with Display(where, 4) as shown:
        shown.job_started(CEILING, "the ceiling reference")
        shown.tick()
        for line in "23":
            shown.job_started(("local-only", line), "the local-only reference")
        shown.job_started(("cell", "a"), "alg")
        shown.tick()
        shown.job_ended(CEILING)
        shown.tick()
    first, second, third, _ = printed(where).splitlines()
    assert ", the ceiling reference running, " in first
    both = "1 cell and the ceiling reference and 2 × the local-only reference running"
    assert f", {both}, " in second
    assert ", 1 cell and 2 × the local-only reference running, " in third


def test_audits_are_counted_while_they_run_and_at_the_end() -> None:
    where = console()
    with Display(where, 4, {"ok": 4}, audits=3, audits_ended=1) as shown:
        shown.job_started(AUDIT, "the audit of alg at ε = 4")
        shown.job_progress(AUDIT, 20, 500)
        shown.tick()
        shown.audit_finished()
        shown.job_ended(AUDIT)
    running, end = printed(where).splitlines()
    audit = "the audit of alg at ε = 4 (20 of 500 pairs) running"
    assert running.startswith(f"4 of 4 cells and 1 of 3 audits finished, {audit}, ")
    assert end == "4 of 4 cells done, 2 of 3 audits done in 0:00:00"


def test_terminal_shows_bars_of_audits_and_their_pairs() -> None:
    where = console(terminal=True)
    with Display(where, 1, audits=3, audits_ended=1) as shown:
        shown.job_started(AUDIT, "the audit of alg")
        shown.job_progress(AUDIT, 20, 500)
    for text in ("audits", "1/3", "the audit of alg", "20/500"):
        assert text in printed(where)


def test_terminal_shows_what_runs_and_is_restored() -> None:
    where = console(terminal=True)
    with suppress(KeyboardInterrupt), Display(where, 2) as shown:
        shown.job_started(CEILING, "the ceiling reference")
        shown.job_started(("cell", "a"), "alg [one]")
        raise KeyboardInterrupt
    text = printed(where)
    assert "the ceiling reference" in text
    assert "alg [one]" in text
    assert 0 <= text.rfind("\x1b[?25l") < text.rfind("\x1b[?25h")
    assert "0 of 2 cells done, 2 not finished in 0:00:00" in text
