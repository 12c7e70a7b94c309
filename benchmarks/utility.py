"""What a run's rows say about utility: shares of the ceiling, paired differences, and the clients' own generators, as Markdown.

python benchmarks/utility.py runs/utility [runs/...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from fedsim.report.report import read_manifest
from fedsim.results import measures
from fedsim.results.groups import Interval
from fedsim.results.store import load_results
from fedsim.words import number

PLACE = ["dataset", "scheme", "alpha", "clients", "trust"]
MEASURES = {"share": "Balanced accuracy as a share of the ceiling", "accuracy": "Accuracy"} | {
    name: measure.title for name, measure in measures.MEASURES.items() if measure.table and name != "balanced_accuracy"
}
COMPARED = ("share", "client_balanced_accuracy")
"""Measures whose paired differences are told."""


def read(folders: list[Path]) -> pd.DataFrame:
    """The rows of the run folders that ended well, one a line, with the share of the ceiling."""
    rows = pd.concat([load_results(folder) for folder in folders], ignore_index=True).drop_duplicates("cell_id")
    rows = rows[rows["status"] == "ok"].copy()
    rows["share"] = rows["balanced_accuracy"] / rows["ceiling_balanced_accuracy"]
    rows["trust"] = rows["trust"].fillna("")
    return rows


def means(rows: pd.DataFrame, measure: str) -> Iterator[dict[str, Any]]:
    """Mean over seeds and half-width of the 95 % interval for every place, method and epsilon."""
    for keys, group in rows.dropna(subset=[measure]).groupby([*PLACE, "label", "epsilon_target"], dropna=False, sort=False):
        interval = Interval.of(group[measure].tolist())
        yield dict(zip([*PLACE, "method", "epsilon"], keys, strict=True)) | {
            "measure": measure,
            "mean": interval.mean,
            "ci95": interval.half_width,
            "seeds": len(group),
        }


def differences(rows: pd.DataFrame, measure: str) -> Iterator[dict[str, Any]]:
    """The first method's measure minus each other private method's, paired over seeds."""
    private = rows.dropna(subset=["epsilon_target", measure])
    first, *others = private["label"].unique() if len(private) else [""]
    index = [*PLACE, "epsilon_target", "seed"]
    shares = private.pivot_table(index=index, columns="label", values=measure, dropna=False, observed=True)
    for other in others:
        paired = (shares[first] - shares[other]).dropna()
        for keys, group in paired.groupby(level=index[:-1], dropna=False, sort=False):
            interval = Interval.of(group.tolist())
            yield dict(zip([*PLACE, "epsilon"], keys, strict=True)) | {
                "measure": f"difference of {measure}",
                "method": f"{first} − {other}",
                "mean": interval.mean,
                "ci95": interval.half_width,
                "seeds": len(group),
            }


def markdown(records: list[dict[str, Any]], title: str, sign: str = "") -> Iterator[str]:
    """A table with a line for every place and method, a column for every epsilon."""
    epsilons = sorted(
        {_key(r["epsilon"]): r["epsilon"] for r in records}.values(), key=lambda e: math.inf if math.isnan(e) else min(e, 1e9)
    )
    # methods without an epsilon have no trust
    varied = [name for name in PLACE if len({str(r[name]) for r in records if r[name] != ""}) > 1]
    lines: dict[tuple[str, ...], dict[float, str]] = {}
    for r in records:
        spread = "" if r["ci95"] is None else f" ± {r['ci95']:.3f}"
        key = (*(number(r[name]) if isinstance(r[name], float) else str(r[name]) for name in varied), r["method"])
        lines.setdefault(key, {})[_key(r["epsilon"])] = f"{r['mean']:{sign}.3f}{spread}"
    yield f"\n## {title}\n"
    yield f"Mean over {max(r['seeds'] for r in records)} seeds ± half-width of the 95 % confidence interval.\n"
    yield "| " + " | ".join([*varied, "method", *("no ε" if math.isnan(e) else f"ε = {number(e)}" for e in epsilons)]) + " |"
    yield "| " + " | ".join(["---"] * (len(varied) + 1) + ["---:"] * len(epsilons)) + " |"
    for key, cells in sorted(lines.items(), key=lambda item: item[0][:-1]):
        yield "| " + " | ".join([*key, *(cells.get(_key(e), "") for e in epsilons)]) + " |"


def _key(epsilon: float) -> float:
    return -1.0 if math.isnan(epsilon) else epsilon


def main() -> None:
    """Read, print, and write the records."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="run folders of `fedsim bench`")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here as a JSON list")
    options = parser.parse_args()
    for folder in options.folders:
        manifest = read_manifest(folder)
        machine = manifest["hardware"]
        where = f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB"
        print(f"`{manifest['command']}` at revision {manifest['revision']}: {where}\n")
    rows, records = read(options.folders), []
    for measure, title in MEASURES.items():
        compared = differences(rows, measure) if measure in COMPARED else ()
        for found, heading, sign in ((means(rows, measure), title, ""), (compared, f"{title}: paired differences", "+")):
            if told := list(found):
                print("\n".join(markdown(told, heading, sign)))
                records += told
    if options.json:
        options.json.write_text(json.dumps(records, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
