"""Where a second of the landscape grid goes: every method's first cell, profiled, by what the time is spent on.

    python benchmarks/landscape_profile.py [--grid benchmarks/landscape.yaml] [--json FILE]

Each cell runs in this process under cProfile, through the code that a worker runs. A part is the time inside its functions; one
that another calls through a third is counted in both. What no part holds is `rest`. Profiling slows down Python and not mathematics, so
small parts look larger than they are.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from fedsim.evaluation.judge import judgement_of
from fedsim.grid.read import load_grid
from fedsim.planning.node import Node
from fedsim.planning.prepare import prepare
from fedsim.training.trial import Outcome, run_trial

PARTS = {
    "clipped gradients": ("clipped_sum",),
    "local steps": ("_local_steps",),
    "statistics": ("clipped_statistics",),
    "what statistics say": ("gaussians", "principal", "free_eigenvalues", "shrunk_along", "pooled_and_own", "maximise", "start"),
    "a generator's own training": ("train_generator", "fit_meta_codes"),
    "public terms": ("_add_public_terms",),
    "Adam and averages": ("adam_step", "average_step"),
    "noise": ("gaussian", "fill_gaussian"),
    "samples": ("poisson", "minibatches"),
    "batches and latent draws": ("batch", "batches"),
    "diagnostics": ("diagnostics", "_gathered"),
    "a classifier's fit": ("fit_probe", "fit_linear"),
    "synthesis": ("synthesise",),
    "neighbours": ("nearest_neighbours",),
    "fidelity": ("leading_directions", "frechet", "squared_mmd", "density_and_coverage"),
    "the accountant": ("epsilon",),
}
"""What a name of fedsim's functions belongs to. What one of them calls directly is not counted again."""


def parts_of(profile: cProfile.Profile) -> Counter[str]:
    """Seconds by part, and in all."""
    stats: Any = pstats.Stats(profile)
    owner = {name: part for part, names in PARTS.items() for name in names}
    seconds: Counter[str] = Counter(total=stats.total_tt)
    for (file, _, name), (_, _, _, _, callers) in stats.stats.items():
        if name in owner and _ours(file):
            outside = [call[3] for (at, _, caller), call in callers.items() if not (_ours(at) and caller in owner)]
            seconds[owner[name]] += sum(outside)
    return seconds


def _ours(file: str) -> bool:
    return any(f"/{room}/" in file for room in ("fedsim", "algorithms", "baselines"))


def main() -> None:
    """Profile the first cell of every method; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=Path, default=Path(__file__).with_name("landscape.yaml"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    prepared = prepare(load_grid(options.grid), [Node(1.0, 0.0)])
    found: dict[str, Counter[str]] = {}
    for trial in prepared.trials:
        if trial.cell.label not in found:
            with cProfile.Profile() as profile:
                *_, outcome = run_trial(trial, prepared.data[trial.data_key])
                assert isinstance(outcome, Outcome)
                judgement_of(trial, outcome.state, prepared.data[trial.data_key])
            found[trial.cell.label] = parts_of(profile)
    whole: Counter[str] = sum(found.values(), Counter())
    table = Table("part", "s", "share", title=f"{len(found)} cells, {whole['total']:.0f} s", title_justify="left")
    whole["rest"] = whole["total"] - sum(value for part, value in whole.items() if part != "total")
    for part, value in whole.most_common():
        if part != "total":
            table.add_row(part, f"{value:.1f}", f"{value / whole['total']:.1%}")
    Console().print(table)
    if options.json:
        records = {"whole": whole, **found}
        rounded = {name: {part: round(value, 3) for part, value in each.items()} for name, each in records.items()}
        options.json.write_text(json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    main()
