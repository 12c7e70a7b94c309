"""What a run's rows say about utility: shares of the ceiling, paired differences, and the clients' own generators, as Markdown.

python benchmarks/utility.py runs/utility [runs/...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedsim.evaluation import measures
from fedsim.json_lines import encode
from fedsim.results.grid_rows import grid_rows, read_manifest
from fedsim.results.groups import Group, Interval, group_seeds
from fedsim.results.paired import PLACE_FIELDS, paired_differences
from fedsim.results.rows import Row
from fedsim.words import number

MEASURES = {"share": "Balanced accuracy as a share of the ceiling", "accuracy": "Accuracy"} | {
    name: measure.title for name, measure in measures.MEASURES.items() if measure.table and name != "balanced_accuracy"
}
COMPARED = ("share", "client_balanced_accuracy")
"""Measures whose paired differences are told."""


def read(folders: list[Path]) -> list[Group]:
    """The rows of the run folders, averaged over seeds; a cell of several folders is taken from the first."""
    rows: dict[str, Row] = {}
    for folder in folders:
        for row in grid_rows(folder):
            rows.setdefault(row.cell_id, row)
    return group_seeds(rows.values())


def value_of(measure: str) -> Callable[[Row], float | None]:
    """How a measure is read off a row; None where the row has none."""
    return _share if measure == "share" else lambda row: row.value(measure)


def _share(row: Row) -> float | None:
    if row.balanced_accuracy is None or row.ceiling_balanced_accuracy is None:
        return None
    return row.balanced_accuracy / row.ceiling_balanced_accuracy


def means(groups: list[Group], measure: str) -> Iterator[dict[str, Any]]:
    """Mean over seeds and half-width of the 95 % interval for every place, method and epsilon."""
    for group in groups:
        values = [value for row in group.rows if (value := value_of(measure)(row)) is not None]
        if values:
            yield _record(group, measure, group.label, Interval.of(values))


def differences(groups: list[Group], measure: str) -> Iterator[dict[str, Any]]:
    """The first private method's measure minus each other private method's, paired over seeds."""
    value = value_of(measure)
    private = [group for group in groups if group.epsilon_target is not None and any(value(row) is not None for row in group.rows)]
    first = private[0].label if private else ""
    for each in paired_differences(private, value):
        if each.first.label == first:
            told = _record(each.first, f"difference of {measure}", f"{first} − {each.second.label}", each.interval)
            yield told | {"p": each.p, "p_holm": each.p_holm}


def _record(group: Group, measure: str, method: str, interval: Interval) -> dict[str, Any]:
    place = {name: getattr(group, name) for name in (*PLACE_FIELDS, "trust")}
    told = {"measure": measure, "mean": interval.mean, "ci95": interval.half_width, "seeds": interval.count}
    return place | {"method": method, "epsilon": group.epsilon_target} | told


def markdown(records: list[dict[str, Any]], title: str, sign: str = "") -> Iterator[str]:
    """A table with a line for every place and method, a column for every epsilon."""
    epsilons = sorted({r["epsilon"] for r in records}, key=lambda e: math.inf if e is None else min(e, 1e9))
    # methods without an epsilon have no trust
    varied = [name for name in (*PLACE_FIELDS, "trust") if len({r[name] for r in records if r[name] is not None}) > 1]
    lines: dict[tuple[str, ...], dict[float | None, str]] = {}
    most = max(r["seeds"] for r in records)
    for r in records:
        spread = "" if r["ci95"] is None else f" ± {r['ci95']:.3f}"
        spread += f" (n={r['seeds']})" if r["seeds"] < most else ""
        key = (*(r[name] if isinstance(r[name], str) else number(r[name]) for name in varied), r["method"])
        lines.setdefault(key, {})[r["epsilon"]] = f"{r['mean']:{sign}.3f}{spread}"
    yield f"\n## {title}\n"
    yield f"{_over(most)}\n"
    yield "| " + " | ".join([*varied, "method", *("no ε" if e is None else f"ε = {number(e)}" for e in epsilons)]) + " |"
    yield "| " + " | ".join(["---"] * (len(varied) + 1) + ["---:"] * len(epsilons)) + " |"
    for key, cells in sorted(lines.items(), key=lambda item: item[0][:-1]):
        yield "| " + " | ".join([*key, *(cells.get(e, "") for e in epsilons)]) + " |"


def _over(seeds: int) -> str:
    return "One seed, so no interval." if seeds == 1 else f"Mean over {seeds} seeds ± half-width of the 95 % confidence interval."


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
    groups, records = read(options.folders), []
    for measure, title in MEASURES.items():
        compared = differences(groups, measure) if measure in COMPARED else ()
        for found, heading, sign in ((means(groups, measure), title, ""), (compared, f"{title}: paired differences", "+")):
            if told := list(found):
                print("\n".join(markdown(told, heading, sign)))
                records += told
    if options.json:
        options.json.write_text(json.dumps(encode(records), indent=1) + "\n")


if __name__ == "__main__":
    main()
