"""Audits every private algorithm of the registry at claims 1 and 4, into the table of benchmarks/results/audit.md; interrupted, it goes on.

    python benchmarks/audit.py [--pairs 50] [--processes 2] [--only dp-gaussian]

Pairs are kept in runs/audit-benchmark/; the table is written anew after every audit, with what is there so far. How many an audit has
follows from what one costs (PAIRS).
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fedsim.errors import UserError
from fedsim.evidence.audit.audit import AuditRun
from fedsim.evidence.audit.setting import setting_of_options
from fedsim.plugins.registry import known, lookup
from fedsim.privacy.plan import Trust, Unit
from fedsim.results.store import ResultStore
from fedsim.words import number

RUNS = Path("runs/audit-benchmark")
TABLE = Path("benchmarks/results/audit.md")
HEAD = "| method | unit, trust | ε claimed | verdict | ε ≥ (Clopper-Pearson) | ε ≥ (refuted mechanism) | at best | pairs | canary |"
INVERSION = "\n## Gradient inversion\n"
DELTA = 1e-4
CLAIMS = (1.0, 4.0)
PAIRS = {
    **{"dp-gaussian example": 3000, "dp-gaussian": 1000, "dp-least-squares": 500, "dp-merf": 500, "dp-prototypes": 500},
    **dict.fromkeys(("dp-feature-covariance", "dp-gmm", "dp-linear", "fedhypevae-sites", "fedhypevae-warm"), 250),
    "fedhypevae example 4": 700,
}
"""By algorithm, unit and claim: many where they are cheap, and as many as others had of it."""
FEW = 100
"""Of any other at a claim of 4, and half of them at 1, as a pair takes a tenth of a second or more; that tests 1 for gross faults alone."""


@dataclass(frozen=True)
class Asked:
    """One audit."""

    algorithm: str
    epsilon: float
    unit: Unit = "example"
    trust: Trust = "aggregate"
    params: tuple[str, ...] = ()
    words: str = ""
    rows: int = 2
    pairs: int = FEW

    @property
    def setting(self) -> str:
        """What is audited, as the command line has it."""
        options = f"--epsilon {number(self.epsilon)}" + (f" --unit {self.unit}" if self.unit != "example" else "")
        options += f" --trust {self.trust}" if self.trust != "aggregate" else ""
        options += f" --rows {self.rows}" if self.rows != 2 else ""
        return " ".join([self.algorithm, options, *(f"--param '{each}'" for each in self.params)])

    @property
    def folder(self) -> Path:
        """Where its pairs are, however many."""
        return RUNS / "".join(c if c.isalnum() or c in ".-" else "_" for c in self.setting)


def every() -> Iterator[Asked]:
    """What is looked at besides the registry, then the registry."""
    shared = "fedhypevae, scope hypernetwork, through its encoder"
    for rows in (2, 30):
        for rate in ("0.2", "1"):
            params = ("noised=shared", "local_learning_rate=0.3", f"sample_rate={rate}")
            yield Asked("fedhypevae", 4.0, params=params, words=f"{shared}, q = {rate}, {rows} other rows", rows=rows, pairs=150)
    schedule = ("rounds=25", "local_steps=1", "sample_rate=1")
    yield Asked("benchmarks/audited.py:PublicSchedule", 1.0, params=schedule, words="the public DP-CVAE's schedule", pairs=200)
    yield Asked("benchmarks/audited.py:LessNoise", 4.0, words="control: dp-cvae with 0.6 of the noise")
    yield Asked("benchmarks/audited.py:TurnedRound", 4.0, words="weight-noise, a loss that turns the round")
    for claim in reversed(CLAIMS):
        for name in known():
            for unit in lookup(name).units if lookup(name).private else ():
                keys = (f"{name} {unit} {number(claim)}", f"{name} {unit}", name)
                yield Asked(name, claim, unit, pairs=next((PAIRS[key] for key in keys if key in PAIRS), FEW if claim > 1 else FEW // 2))
    yield Asked("fedhypevae", 4.0, trust="silo")


def run(asked: Asked) -> tuple[Asked, str, float]:
    """One audit, as a line of the table."""
    started = time.process_time()
    label = asked.words or asked.algorithm
    try:
        setting = setting_of_options(asked.algorithm, asked.params, asked.unit, asked.trust, asked.epsilon, DELTA, rows=asked.rows)
        audit = AuditRun(setting, "white-box", asked.pairs)
    except UserError as error:
        return asked, f"| {label} | {asked.unit}, {asked.trust} | {number(asked.epsilon)} | {error.what} | | | | | |", 0.0
    store = ResultStore(asked.folder)
    with store.lock():
        audit.completed(
            store.audit_pairs(audit.key),
            lambda lines: store.append("pairs", ({"audit": audit.key, **line} for line in lines)),
            lambda _: None,
        )
        found = audit.outcome(store.audit_pairs(audit.key))
    verdict, best = "**refuted**" if found.refuted else "not refuted", found.best
    bounds = f"{found.clopper_pearson:.2f} | {found.mechanism:.2f} | {best.clopper_pearson:.2f} / {best.mechanism:.2f}"
    place = f"| {label} | {asked.unit}, {asked.trust} | {number(asked.epsilon)}"
    line = f"{place} | {verdict} | {bounds} | {found.pairs} | {found.printed_ratio:.2f} |"
    return asked, line, time.process_time() - started


def write(done: Sequence[tuple[Asked, str, float]], asked: Sequence[Asked], options: str) -> None:
    """The table of what is done, below the page's prose."""
    ordered = sorted(done, key=lambda each: asked.index(each[0]))
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    prose, _, old = TABLE.read_text(encoding="utf-8").partition(HEAD)
    _, heading, inversion = old.partition(INVERSION)
    text = [
        HEAD,
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(line for _, line, _ in ordered),
        "",
        f"**Repeat.** `python benchmarks/audit.py{options}` at {revision or 'an unknown revision'}; {platform.machine()}, "
        f"{os.cpu_count()} cores; {len(done)} of {len(asked)} audits, "
        f"{sum(seconds for *_, seconds in done):.0f} s of one core in the last command.",
    ]
    TABLE.write_text(prose + "\n".join(text) + "\n" + heading + inversion, encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, help="at most so many of each audit")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="a part of the algorithm's name")
    given = parser.parse_args()
    most = given.pairs or max(PAIRS.values())
    asked = [replace(each, pairs=min(each.pairs, most)) for each in every() if given.only in each.algorithm]
    options = (f" --pairs {given.pairs}" if given.pairs else "") + (f" --only {given.only}" if given.only else "")
    done: list[tuple[Asked, str, float]] = []
    with ProcessPoolExecutor(given.processes) as pool:
        for each in as_completed([pool.submit(run, one) for one in asked]):
            done.append(each.result())
            print(f"{len(done)} of {len(asked)}: {done[-1][1]} {math.ceil(done[-1][2])} s", flush=True)
            write(done, asked, options)


if __name__ == "__main__":
    main()
