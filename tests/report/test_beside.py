import gc
import subprocess
import sys

import joblib
import pytest
from rows import add_lines, add_rows

from fedsim.report import beside
from fedsim.report.report import write_report


def written(folder, rows, records):
    """Every file of a run folder's report, by name."""
    add_rows(folder / "run", *rows)
    add_lines(folder / "run" / "rounds.jsonl", records)
    page = write_report(folder / "run").page
    return {path.name: path.read_bytes() for path in [page, *(folder / "run" / "curves").iterdir()]}


def test_a_report_of_two_processes_is_that_of_one_to_the_last_byte(tmp_path, quickstart, training, monkeypatch):
    records = [record for row in quickstart[:3] for record in training(row.cell_id)]
    one = written(tmp_path / "one", quickstart, records)
    started = []
    monkeypatch.setattr(beside, "MANY_ROWS", len(quickstart))
    monkeypatch.setattr(joblib, "cpu_count", lambda: started.append(1) or 2)
    assert written(tmp_path / "two", quickstart, records) == one
    assert started
    assert {"diagnostics.png", "diagnostics.svg", "privacy_utility.png", "report.html"} <= one.keys()


@pytest.mark.parametrize(("rows", "processors"), [(beside.MANY_ROWS - 1, 2), (beside.MANY_ROWS, 1)])
def test_few_rows_or_one_processor_start_no_process(monkeypatch, rows, processors):
    monkeypatch.setattr(joblib, "cpu_count", lambda: processors)
    with beside.process_beside(rows, "json") as found:
        assert found is None


def test_a_script_needs_no_guard_around_what_it_runs(tmp_path):
    """A process that started the script anew would print twice."""
    script = tmp_path / "script.py"
    script.write_text(
        "import joblib; joblib.cpu_count = lambda: 2\n"
        "from fedsim.report.beside import process_beside\n"
        "with process_beside(10**6, 'json') as found: print(found.submit(divmod, 7, 2).result())\n"
    )
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("(3, 1)\n", "")


def test_a_script_that_ends_at_once_leaves_nothing_to_clean_up(tmp_path):
    """A lock that is given back while the interpreter ends is told as leaked."""
    script = tmp_path / "script.py"
    script.write_text(
        "import gc, joblib, threading; joblib.cpu_count = lambda: 2\n"
        "from fedsim.report.beside import process_beside\n"
        "run = threading.Thread.run\n"
        "def late(thread):\n"
        "    run(thread)\n"
        "    if thread.daemon: pause.wait(0.2)\n"
        "pause, threading.Thread.run = threading.Event(), late\n"
        "with process_beside(10**6, 'json') as found: found.submit(divmod, 7, 2).result()\n"
        "gc.collect()\n"
        "print([thread.name for thread in threading.enumerate()])\n"
    )
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("['MainThread']\n", "")


@pytest.mark.parametrize("before", [True, False])
def test_the_search_for_cycles_is_as_it_was_before_whatever_happened(before):
    was = gc.isenabled()
    (gc.enable if before else gc.disable)()
    try:
        with pytest.raises(ZeroDivisionError), beside.without_collection():
            print(1 / int(gc.isenabled()))
        assert gc.isenabled() == before
    finally:
        (gc.enable if was else gc.disable)()
