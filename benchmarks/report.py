"""What `fedsim report` takes for a run folder of 5,200 rows, beside another revision, and what reading and joining its lines does.

    python benchmarks/report.py [--baseline CHECKOUT] [--rounds 20] [--repeats 3] [--json FILE]

The folder holds made-up result lines of a real grid: its cells, plans and partitions are prepared, its files written, as a bench does it.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from fedsim.planning.label_matrices import drawn_matrices
from rich.console import Console
from rich.table import Table

from fedsim.evaluation.judge import Judgement
from fedsim.evaluation.references import Ceiling, LocalOnly
from fedsim.grid.models import Grid
from fedsim.partition.matrix import write_partitions
from fedsim.privacy.ledger import Tally
from fedsim.report.report import without_collection
from fedsim.results.grid_rows import entries, grid_rows
from fedsim.results.join import Lines
from fedsim.results.result_lines import judgement_line, reference_line, training_line
from fedsim.results.store import ResultStore
from fedsim.runs.bench import entries_of
from fedsim.runs.display import Display
from fedsim.runs.jobs import Desk, references_of
from fedsim.runs.manifest import versions, write_manifest
from fedsim.runs.need import Node
from fedsim.runs.prepare import prepare
from fedsim.training.trial import Outcome, Trial

PRIVATE = ("fedhypevae", "dp-gaussian", "dp-gmm", "dp-merf", "dp-cgan", "dp-cvae", "weight-noise", "dp-fedavg-linear")
OPEN = ("fedavg-cvae", "fedprox-cvae", "fedavg-linear", "fedprox-linear", "fedlambda", "local-only", "centralised")
GRID = {
    "algorithms": [*PRIVATE, *OPEN, {"name": "fedhypevae", "label": "fedhypevae, latent 32", "params": {"latent": 32}}],
    "alpha": [0.05, 0.1, 0.3, 1.0, 10.0],
    "clients": [10, 20],
    "epsilon": [1, 2, 4, 8, math.inf],
}
"""52 cells a place and seed, 520 a seed."""
CEILING, LOCAL_ONLY, CHANCE = 0.95, 0.4, 0.1
HERE = Path(__file__).resolve().parent.parent


def write_run(folder: Path, seeds: int, rounds: int) -> int:
    """Write a run folder as a bench leaves it; the number of its rows."""
    grid = Grid.model_validate({**GRID, "seeds": list(range(seeds))})
    prepared = prepare(grid, [Node(2.0, 0.0)])
    rng, used = np.random.default_rng(0), versions()
    trainings, judgements, references, records = [], [], {}, []
    with ResultStore(folder).lock() as store:
        desk = Desk(prepared, store, Display(Console(file=io.StringIO()), len(prepared.trials), 0, {}))
        for trial in prepared.trials:
            if trial.cell.algorithm not in ("local-only", "centralised", "fedlambda"):
                records += [{"training_id": trial.cell.training_id, **record} for record in _rounds(trial, rounds, rng)]
            trainings.append(training_line(trial, _outcome(trial, rng), used))
            judgements.append(judgement_line(trial, _judgement(trial, rng), 0.1))
            ceiling, local_only = references_of(desk, trial)
            references[ceiling.key[-1]] = reference_line(ceiling.key[-1], Ceiling(CEILING, CEILING))
            references[local_only.key[-1]] = reference_line(local_only.key[-1], LocalOnly(LOCAL_ONLY, ()))
        store.append("references", references.values())
        store.append("rounds", records)
        store.append("trainings", trainings)
        store.append("judgements", judgements)
        write_manifest(store.folder, prepared, entries_of(desk, ()))
        write_partitions(store.folder.partitions, drawn_matrices(prepared))
    return len(prepared.trials)


def _judgement(trial: Trial, rng: np.random.Generator) -> Judgement:
    epsilon = trial.cell.epsilon
    strength = 1.0 if epsilon is None or math.isinf(epsilon) else epsilon / (1 + epsilon)
    score = CHANCE + (CEILING - CHANCE) * strength * (0.7 + 0.1 * math.log10(20 * (trial.cell.alpha or 1.0))) + rng.normal(0, 0.01)
    scores: Any = {name: min(max(score, 0.0), 1.0) for name in ("accuracy", "balanced_accuracy", "macro_f1")}
    return Judgement(scores, (score,) * trial.task.classes, (), None, "uniform")


def _outcome(trial: Trial, rng: np.random.Generator) -> Outcome:
    plan = trial.plan
    return Outcome(
        epsilon_spent=plan.epsilon_reached if plan else None,
        accountant=plan.accountant if plan else None,
        mechanisms=tuple(Tally(0, r.name, plan.noise_multiplier(r.name), r.sample_rate, r.steps) for r in plan.releases) if plan else None,
        noise_at="sum" if plan else None,
        unaccounted="",
        uplink_bytes=int(rng.integers(10**7)),
        downlink_bytes=int(rng.integers(10**7)),
        parameters=int(rng.integers(10**4)),
        seconds=4 * rng.random(),
        state={},
    )


def _rounds(trial: Trial, rounds: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    noise = trial.plan.sigma if trial.plan else 0.0
    for round_ in range(rounds):
        fall, wobble = math.exp(-4 * round_ / rounds), rng.normal(1, 0.05, 8)
        private = {"noise": int(rng.integers(2**32)), "noise_norm": 90 * noise * wobble[0]} if trial.plan else {}
        yield {
            "round": round_,
            "release": trial.plan.releases[-1].name if trial.plan else "update",
            "sampled": int(rng.integers(2**32)),
            **private,
            "signal_norm": 130 * fall * wobble[1],
            "loss_reconstruction": fall * wobble[2] - 1,
            "loss_kl": 0.01 * wobble[3],
            "loss_kernel": -0.01 * wobble[4],
            "kl": 2 * wobble[5],
            "gradient_norm_quantiles": sorted(rng.normal(2, 0.2, 5)),
            "clipped_fraction": min(1.0, 0.8 * wobble[6]),
            "generated_decoder_norm": 7.6 * wobble[7],
            "generated_prior_norm": 1.0,
            "cross_client_mmd": 0.05 * fall,
            "loss_lipschitz": 1e-4,
            "parameter_norm": 7.7,
        }


@dataclass(frozen=True)
class Record:
    """Median seconds of a revision's command, and of importing what it needs, both by the clock and by the processor."""

    revision: str
    rows: int
    rounds: int
    wall: float
    cpu: float
    import_wall: float
    import_cpu: float


COMMAND = "from fedsim.cli import main; main()"
IMPORTS = "import fedsim.cli, fedsim.report.report"


def measure(folder: Path, rows: int, rounds: int, revisions: dict[str, Path], repeats: int) -> list[Record]:
    """Medians over interleaved runs: what the machine does meanwhile hits all revisions alike."""
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(repeats):
        for name, root in revisions.items():
            times.setdefault((name, "report"), []).append(_timed(root, "-c", COMMAND, "report", str(folder)))
            times.setdefault((name, "import"), []).append(_timed(root, "-c", IMPORTS))

    def medians(name: str, what: str) -> list[float]:
        return [round(statistics.median(column), 2) for column in zip(*times[name, what], strict=True)]

    return [Record(name, rows, rounds, *medians(name, "report"), *medians(name, "import")) for name in revisions]


def _timed(root: Path, *arguments: str) -> tuple[float, float]:
    """Seconds by the clock and by the processor of a command in a checkout."""
    start = time.perf_counter()
    process = Popen([sys.executable, *arguments], cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, stdout=DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{root}: `{' '.join(arguments)}` failed")
    return wall, usage.ru_utime + usage.ru_stime


def join_seconds(folder: Path) -> tuple[int, float, float]:
    """Lines of a folder without its rounds, seconds of the processor to read them, and to join them to rows, as a report does."""
    with without_collection():
        start = time.process_time()
        lines = Lines.read(folder)
        read = time.process_time()
        cells = entries(folder, lines)
        listed = time.process_time()
        lines.rows(cells)
        joined = time.process_time()
    return len(lines.trainings) + len(lines.judgements) + len(lines.references), read - start, joined - listed


def table(records: list[Record]) -> Table:
    """The result for people."""
    first = records[0]
    shown = Table(title=f"fedsim report, {first.rows} rows, {first.rounds} rounds each (median seconds)")
    for heading in ("revision", "wall", "cpu", "of which imports: wall", "cpu", "x here"):
        shown.add_column(heading, justify="left" if heading == "revision" else "right")
    for each in records:
        seconds = (each.wall, each.cpu, each.import_wall, each.import_cpu)
        shown.add_row(each.revision, *(f"{value:.2f}" for value in seconds), f"{each.cpu / first.cpu:.2f}")
    return shown


def main() -> None:
    """Measure, print, and write the records."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--baseline", type=Path, metavar="CHECKOUT", help="another revision, timed in turn")
    parser.add_argument("--seeds", type=int, default=10, help="520 rows each")
    parser.add_argument("--rounds", type=int, default=20, help="records a cell")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the run folder stays; made if it is not there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here as a JSON list")
    options = parser.parse_args()
    revisions = {"here": HERE} | ({"baseline": options.baseline.resolve()} if options.baseline else {})
    with TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary) / "run").resolve()
        made = (folder / "manifest.json").exists()
        rows = len(grid_rows(folder)) if made else write_run(folder, options.seeds, options.rounds)
        lines, read, joined = join_seconds(folder)
        records = measure(folder, rows, options.rounds, revisions, options.repeats)
    console = Console(width=120)
    console.print(table(records))
    per = 100_000 / lines
    console.print(f"100,000 result lines, by those of {lines}: {per * read:.2f} s to read, {per * joined:.2f} s to join (cpu)")
    if options.json:
        options.json.write_text(json.dumps([asdict(record) for record in records], indent=1) + "\n")


if __name__ == "__main__":
    main()
