"""Gradient inversion of five methods, into the last section of benchmarks/results/audit.md and a picture; interrupted, it goes on.

    python benchmarks/inversion.py ORGANAMNIST_DINOV2S.npz [--clients 3]

Lines are kept in runs/inversion-benchmark/.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))

from fedsim.data.sources.load import load
from fedsim.data.sources.spec import DatasetSpec
from fedsim.evidence.audit.inversion import BATCH_ROWS, Inversion, MeanScores, summary
from fedsim.evidence.audit.setting import parameters
from fedsim.report.figures import INK, MUTED, SERIES, dress, save_figure, style
from fedsim.results.store import ResultStore

RUNS = Path("runs/inversion-benchmark")
RESULTS = Path("benchmarks/results")
HEAD = "| method | setting | rows | attack | guess without data | rows above 0.95 |"
EPSILON, DELTA = 1.0, 1e-4
METHODS = {
    "fedhypevae": ["precondition=0"],
    "dp-linear": [],
    "dp-cvae": ["hidden=[64]", "latent=16"],
    "fedavg-linear": [],
    "fedavg-cvae": [],
}
"""With parameters that are not the defaults: dp-cvae's networks would take an hour."""


def draw(found: dict[str, list[MeanScores]]) -> None:
    """A panel a method: cosine against rows, a line a setting; the guess is dashed."""
    with style():
        figure = Figure(figsize=(11, 2.6), layout="constrained")
        panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
        colours = dict(zip(dict.fromkeys(mean.setting for means in found.values() for mean in means), SERIES, strict=False))
        for axes, (method, means) in zip(panels, found.items(), strict=True):
            dress(axes, "both", 0.6)
            axes.set_title(method, fontsize=9.5, color=INK)
            bare = [mean for mean in means if mean.setting == "without DP"]
            axes.plot([mean.rows for mean in bare], [mean.guess for mean in bare], "--", color=MUTED, label="guess without data")
            for position, setting in enumerate(dict.fromkeys(mean.setting for mean in means)):
                own = [mean for mean in means if mean.setting == setting]
                axes.plot(
                    [mean.rows for mean in own],
                    [mean.cosine for mean in own],
                    marker="os^"[position],
                    color=colours[setting],
                    label=setting,
                    markersize=7 - 1.5 * position,
                )
            axes.set_xscale("log", base=4)
            axes.set_xticks(BATCH_ROWS, [str(rows) for rows in BATCH_ROWS])
            axes.set_xlabel("rows in the message")
        panels[0].set_ylabel("cosine to the true rows")
        panels[0].set_ylim(top=1.03)
        labels = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(labels.values(), labels.keys(), loc="outside upper left", ncols=len(labels), frameon=False)
        save_figure(figure, RESULTS, "inversion")[1].unlink()


def write(found: dict[str, list[MeanScores]], command: str, seconds: float) -> None:
    """The table, where the page has it."""
    page = RESULTS / "audit.md"
    prose, _, _ = page.read_text(encoding="utf-8").partition(HEAD)
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    lines = [HEAD, "| --- | --- | --- | --- | --- | --- |"]
    for method, means in found.items():
        lines += [f"| {method} | {m.setting} | {m.rows} | {m.cosine:.2f} | {m.guess:.2f} | {m.recovered:.0%} |" for m in means]
    repeat = f"**Repeat.** `{command}` at {revision}; {platform.machine()}, {os.cpu_count()} cores; {seconds:.0f} s in the last command."
    page.write_text(prose + "\n".join([*lines, "", repeat, ""]), encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--clients", type=int, default=3)
    given = parser.parse_args()
    data, store, started, found = load(DatasetSpec(npz=given.data)), ResultStore(RUNS), time.process_time(), {}
    for method, params in METHODS.items():
        known = parameters(method, params, "example", "aggregate", EPSILON, DELTA)
        run = Inversion(method, known, "example", "aggregate", EPSILON, DELTA, data, given.clients)
        with store.lock():
            run.completed(
                store.audit_pairs(run.key),
                lambda lines, key=run.key: store.append("pairs", ({"audit": key, **line} for line in lines)),
                lambda count, method=method, of=run.count: print(f"{method}: {count} of {of}", flush=True),
            )
        found[method] = summary(line for line in store.audit_pairs(run.key) if line["pair"] < run.count)
    write(found, f"python benchmarks/inversion.py {given.data.name} --clients {given.clients}", time.process_time() - started)
    draw(found)


if __name__ == "__main__":
    main()
