"""Write the results of one or several run folders into a file of the results pages.

    python benchmarks/record.py FOLDER... --run NAME --json benchmarks/results/paper.json

The file holds one line per result: the name of its run and some columns. The results of the same
run, data set, method and budget that were in the file are replaced; all others stay.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import fedsim

COLUMNS = (
    "dataset",
    "label",
    "scheme",
    "alpha",
    "clients",
    "unit",
    "delta",
    "epsilon_target",
    "epsilon_spent",
    "claim",
    "seed",
    "balanced_accuracy",
    "accuracy",
    "auroc",
    "knn_balanced_accuracy",
    "frechet_distance",
    "coverage",
    "real_or_synthetic",
    "membership_auc",
    "client_balanced_accuracy",
    "client_shared_balanced_accuracy",
    "client_worst_balanced_accuracy",
    "personal_balanced_accuracy",
    "personal_held_out_accuracy",
    "personal_held_out_balanced_accuracy",
    "personal_held_out_alone_accuracy",
    "personal_held_out_alone_balanced_accuracy",
    "personal_held_out_weight",
    "ceiling_balanced_accuracy",
    "local_only_balanced_accuracy",
)
"""The columns of a result that are recorded, if they have a value."""
REPLACED = ("run", "dataset", "label", "epsilon_target")
"""Results that are equal in these columns are replaced together."""
# Numbers are rounded to this many digits after the point.
DIGITS = 5


def plain(value: Any) -> Any:
    """Return a value for JSON: rounded if it is a float, "inf" for infinity, and None for NaN."""
    if not isinstance(value, float):
        return value
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "inf"
    return round(value, DIGITS)


def recorded(folder: Path, run: str) -> list[dict[str, Any]]:
    """Return one record for each finished result of a run folder.

    Args:
        folder: the run folder.
        run: the name of the run, which every record gets.
    """
    rows = fedsim.load(folder).rows
    finished = rows[rows["status"] == "ok"]
    records = []
    for result in finished.to_dict("records"):
        record: dict[str, Any] = {"run": run}
        for column in COLUMNS:
            value = plain(result.get(column))
            if value is not None:
                record[column] = value
        records.append(record)
    return records


def replaced_together(record: dict[str, Any]) -> tuple[Any, ...]:
    """Return the values of a record that decide with which other records it is replaced."""
    return tuple(record.get(column) for column in REPLACED)


def main() -> None:
    """Replace the results of a run in a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="folders with different results")
    parser.add_argument("--run", required=True, help="the name of the run in the file")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    new = [record for folder in options.folders for record in recorded(folder, options.run)]
    replaced = {replaced_together(record) for record in new}
    old = []
    if options.json.exists():
        old = json.loads(options.json.read_text(encoding="utf-8"))
    others = [record for record in old if replaced_together(record) not in replaced]
    lines = [json.dumps(record, ensure_ascii=False) for record in [*others, *new]]
    options.json.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    print(f"{len(new)} results of {options.run} are in {options.json}; {len(others)} others stay")


if __name__ == "__main__":
    main()
