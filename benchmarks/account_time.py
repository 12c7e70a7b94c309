"""What `fedsim account` takes, with a budget that is new and with one that is known, beside an interpreter that imports numpy: in turns.

    python benchmarks/account_time.py [--repeats 5] [--json FILE]

Seconds of the clock and of the processor, medians, each in a process of its own; the load says what else the machine did.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
ACCOUNT = "from fedsim.cli import main; main()"
OPTIONS = ("account", "--epsilon", "1", "--delta", "1e-4", "--rounds", "300", "--sample-rate", "0.1", "--out", "out")
NEW, KNOWN, NUMPY = "account, a new budget", "account, a known budget", "import numpy"


def main() -> None:
    """Measure in turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs: dict[str, list[tuple[float, float, float]]] = {NEW: [], KNOWN: [], NUMPY: []}
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for name, code in ((NEW, (ACCOUNT, *OPTIONS)), (KNOWN, (ACCOUNT, *OPTIONS)), (NUMPY, ("import numpy",))):
                runs[name].append((*timed(code, folder), os.getloadavg()[0]))
    table = Table("", "seconds", "processor seconds", "load")
    found = {}
    for name, each in runs.items():
        seconds, cpu, load = zip(*each, strict=True)
        found[name] = {"seconds": statistics.median(seconds), "cpu_seconds": statistics.median(cpu), "load": max(load)}
        table.add_row(name, f"{found[name]['seconds']:.2f}", f"{found[name]['cpu_seconds']:.2f}", f"{max(load):.1f}")
    Console().print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def timed(code: tuple[str, ...], folder: str) -> tuple[float, float]:
    """Seconds and processor seconds of a Python process in ``folder``, whose cache of solved budgets is there too."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FEDSIM_CACHE": f"{folder}/cache"}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", *code], cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
