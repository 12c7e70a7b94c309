import io
import re
import threading

import pytest
from rich.console import Console

from fedsim.results.rows import Row
from fedsim.runs.display import Display, Preparing

ERROR = {"type": "ValueError", "message": "a [bold] reason\nsecond line", "traceback": "Traceback ..."}
SCORES = {"accuracy": 0.8, "balanced_accuracy": 0.812, "macro_f1": 0.8}


def row(cell_id="a", status="ok", **fields):
    base = {"cell_id": cell_id, "status": status, "algorithm": "alg", "label": "alg", "params": {}, "dataset": "digits"}
    base |= {"alpha": 0.1, "clients": 10, "seed": 2, "epsilon_target": 4.0, "epsilon_spent": 3.98, "seconds": 4.0}
    base |= {"error": ERROR} if status == "failed" else SCORES
    return Row.model_validate(base | fields)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def terminal(width=100):
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=40, color_system=None)


def plain(width=100):
    return Console(file=io.StringIO(), force_terminal=False, width=width)


def frame(display, width=100):
    """What the live view shows now, as text."""
    console = plain(width)
    console.print(display._view())
    return console.file.getvalue()


def test_a_long_preparation_tells_a_pipe_how_far_it_is_and_a_short_one_nothing():
    clock, console = Clock(), plain()
    with Preparing(console, every=20, clock=clock) as tell:
        for now in range(0, 50, 5):
            clock.now = now
            tell(f"planning the budgets: {now} of 50")
    assert console.file.getvalue().splitlines() == ["planning the budgets: 20 of 50 (20 s)", "planning the budgets: 40 of 50 (40 s)"]


def test_a_preparation_shows_itself_in_a_terminal_and_leaves_nothing():
    clock, console = Clock(), terminal()
    with Preparing(console, clock=clock) as tell:
        tell("dividing the data: partition 3 of 9")
        console.file.write("\n")
    assert "\x1b[?25h" in console.file.getvalue()


def test_one_line_a_finished_cell():
    console = plain(width=40)
    with Display(console, total=4, already_done=1, clock=Clock()) as display:
        for cell in "abc":
            display.cell_started(cell, "alg")
            display.round_done(cell, 1, 5)
        display.cell_finished(row("a"))
        display.cell_finished(row("b", "failed"))
        display.cell_finished(row("c", "overspent", epsilon_spent=9.0))
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "[2/4] alg · digits · α = 0.1 · 10 clients · ε = 4 · seed 2: balanced accuracy 0.812, ε spent 3.98, 4.0 s"
    assert lines[1] == "[3/4] alg · digits · α = 0.1 · 10 clients · ε = 4 · seed 2: failed, ValueError: a [bold] reason"
    assert lines[2].endswith("overspent (balanced accuracy 0.812, ε spent 9 of 4), 4.0 s")
    assert lines[3] == "2 of 4 cells done, 1 failed, 1 overspent in 0:00"
    assert len(lines) == 4


def test_cells_that_an_earlier_run_did_not_end_well_are_not_done():
    console = plain()
    with Display(console, total=5, already_done=1, not_ok={"failed": 1, "refuted": 1}, clock=Clock()) as display:
        display.cell_finished(row("a", "failed"))
    assert console.file.getvalue().splitlines()[0].startswith("[4/5] ")
    assert console.file.getvalue().splitlines()[-1] == "1 of 5 cells done, 2 failed, 1 refuted, 1 not finished in 0:00"


def test_the_live_view_counts_and_shows_every_running_cell_with_its_round():
    display = Display(terminal(), total=54, already_done=3)
    display.cell_started("a", "alg one")
    display.cell_started("b", "alg [two]")
    display.round_done("a", 7, 20)
    text = frame(display)
    assert "3/54 cells · 3 done · 2 running · 0 failed" in text
    assert re.search(r"alg one .*round 7/20", text)
    assert re.search(r"alg \[two\] .*starting", text)
    display.cell_finished(row("a"))
    display.cell_finished(row("b", "failed"))
    text = frame(display)
    assert "5/54 cells · 4 done · 0 running · 1 failed" in text
    assert "alg one" not in text


def test_the_live_view_shows_how_long_ago_the_last_round_was_once_that_is_long_ago():
    clock = Clock()
    display = Display(terminal(), total=2, clock=clock)
    display.cell_started("a", "alg one")
    display.cell_started("b", "alg two")
    clock.now = 4.0
    display.round_done("a", 7, 20)
    clock.now = 8.0
    assert re.search(r"round 7/20 *\n", frame(display))
    assert "starting for 0:08" in frame(display)
    clock.now = 79.0
    assert "round 7/20, 1:15 ago" in frame(display)
    display.round_done("a", 8, 20)
    assert re.search(r"round 8/20 *\n", frame(display))


def test_a_cell_that_is_queued_again_does_not_count_as_running():
    display = Display(terminal(), total=3)
    for cell in "ab":
        display.cell_started(cell, f"alg {cell}")
    display.cell_queued("a")
    assert "1 running" in frame(display)
    assert "alg a" not in frame(display)
    display.cell_started("a", "alg a")
    assert "2 running" in frame(display)


def test_many_running_cells_are_cut_to_a_screen():
    display = Display(terminal(), total=500)
    for cell in range(100):
        display.cell_started(str(cell), f"cell {cell}")
    assert len(frame(display).splitlines()) < 20
    assert "… and 88 more running" in frame(display)


def test_a_failure_and_a_note_stay_on_the_screen():
    console = terminal()
    with Display(console, total=1) as display:
        display.note("starting ray [ok]")
        display.cell_started("a", "alg")
        display.cell_finished(row("a", "failed"))
    text = console.file.getvalue()
    assert "starting ray [ok]" in text
    assert "failed, ValueError: a [bold] reason" in text


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_terminal_is_restored_however_the_view_is_left(error):
    console = terminal()

    def bench():
        with Display(console, total=2, clock=Clock()) as display:
            display.cell_started("a", "alg")
            raise error

    with pytest.raises(error):
        bench()
    text = console.file.getvalue()
    hidden, shown = text.rfind("\x1b[?25l"), text.rfind("\x1b[?25h")
    assert 0 <= hidden < shown
    assert text.rstrip().endswith("0 of 2 cells done, 2 not finished in 0:00")
    for thread in [each for each in threading.enumerate() if type(each).__module__.startswith("rich.")]:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_several_threads_may_report_while_the_view_refreshes():
    console = terminal()

    def work(start):
        for cell in range(start, start + 40):
            display.cell_started(str(cell), f"cell {cell}")
            display.round_done(str(cell), 1, 2)
            display.cell_finished(row(str(cell), "ok" if cell % 2 else "failed"))

    with Display(console, total=160) as display:
        threads = [threading.Thread(target=work, args=(start,), daemon=True) for start in (0, 40, 80, 120)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            display._live.refresh()
        for thread in threads:
            thread.join(timeout=20)
        assert not any(thread.is_alive() for thread in threads)
    assert "80 of 160 cells done, 80 failed" in console.file.getvalue()


def test_time_left_is_the_mean_of_finished_cells_over_what_ran_at_once():
    clock = Clock()
    display = Display(plain(), total=10, already_done=2, clock=clock)
    assert display.seconds_left() is None
    for cell in "ab":
        display.cell_started(cell, "")
    clock.now = 10.0
    for cell in "ab":
        display.cell_finished(row(cell))
    # 6 cells of 10 s each, two at a time.
    assert display.seconds_left() == pytest.approx(30.0)
    for cell in "cd":
        display.cell_started(cell, "")
        display.round_done(cell, 5, 10)
    assert display.seconds_left() == pytest.approx(25.0)
    assert display.time_text() == "0:10 gone, about 0:25 left"


def test_a_cell_that_failed_early_does_not_shorten_the_estimate():
    clock = Clock()
    display = Display(plain(), total=3, already_done=0, clock=clock)
    display.cell_started("a", "")
    display.cell_finished(row("a", "failed"))
    assert display.seconds_left() is None


def test_a_late_round_of_a_cell_that_ended_is_ignored():
    display = Display(plain(), total=1, already_done=0, clock=Clock())
    display.cell_started("a", "")
    display.cell_finished(row("a"))
    display.round_done("a", 1, 2)
    assert display.running == {}
