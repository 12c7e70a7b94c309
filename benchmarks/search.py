"""The same search for every method: equally many settings, scored on rows that no table shows.

    python benchmarks/search.py --data FOLDER [--grid FILE] [--methods NAME ...] [--settings N]
        [--out FOLDER] [--json FILE]

The grid (``search.yaml``) declares the space of every method under ``tune``. The script draws the
same number of settings from each space; the first is the default. It trains them on the training
rows of the tuning sets, without a fifth that it keeps as validation rows, and reads no test row.
The score of a setting is the mean, over sets and ε, of balanced accuracy as a share of the
ceiling. It is that of the shared model, or the mean over clients' own models if the grid evaluates
these (``per_client`` or ``personal``). All settings are trained with the first seed, and the best
third of each method with the second seed as well. The best of these by the mean of both seeds wins
if it is better than the default by more than 0.005.

The run folders are kept, so a search that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from rich.console import Console
from rich.table import Table
from sklearn.model_selection import StratifiedGroupKFold

import fedsim
from fedsim.plugins.registry import lookup

GRID = Path(__file__).with_suffix(".yaml")
FIRST_SEED = 0
SECOND_SEED = 1
FINALISTS = 3
"""One in this number of settings, the best ones, is trained with the second seed too."""
LEAST_GAIN = 0.005
"""A setting replaces the default if its score is better by more than this."""
VALIDATION_FOLDS = 5
"""The number of folds of the training rows; the first fold has the validation rows."""
GROUPS = {"chestxray_dinov2s.npz": "patient"}
"""By file, the column whose equal values stay in one fold."""


@dataclass(frozen=True)
class Scored:
    """One setting of one method with its scores.

    Attributes:
        method: the method.
        setting: the number of the setting; 0 is the default.
        params: the parameters that differ from the default.
        first: the score with the first seed; NaN if a training failed.
        both: the mean score of both seeds; NaN for a setting that is no finalist, or if a training
            failed.
        points: the score at each set and ε: the mean of both seeds, or the first seed's.
        wins: whether the setting is the method's new default.
    """

    method: str
    setting: int
    params: dict[str, Any]
    first: float
    both: float
    points: dict[str, float]
    wins: bool


def validation_set(source: Path, group: str | None, folder: Path) -> Path:
    """Write the training rows of a file into a new file, and return the path of the new file.

    A fifth of the rows become validation rows: their ``split`` is 2, the value of test rows.

    Args:
        source: a file with arrays ``x``, ``y`` and ``split``.
        group: the array whose equal values stay in one fold, such as the patient; None if every row
            is its own group.
        folder: the folder of the new file.
    """
    with np.load(source, allow_pickle=False) as arrays:
        rows = np.flatnonzero(arrays["split"] == 0)
        x = arrays["x"][rows]
        y = arrays["y"][rows]
        groups = np.arange(len(rows))
        if group is not None:
            groups = arrays[group][rows]
    folds = StratifiedGroupKFold(VALIDATION_FOLDS, shuffle=True, random_state=0)
    _, held_out = next(folds.split(x, y, groups))
    split = np.zeros(len(rows), np.int8)
    split[held_out] = 2
    target = folder / source.name
    np.savez(target, x=x, y=y, split=split)
    return target


def settings_of(
    method: str,
    params: Mapping[str, Any],
    space: Mapping[str, Sequence[Any]],
    count: int,
) -> list[dict[str, Any]]:
    """Return the default and different random points of a space, at most ``count`` in all.

    Args:
        method: the method.
        params: the parameters that all settings share.
        space: the values of each parameter.
        count: the largest number of settings.
    """
    points = math.prod(len(values) for values in space.values())
    generator = np.random.Generator(np.random.PCG64(0))
    order = generator.permutation(points)
    model = lookup(method).Params
    settings = [dict(params)]
    for number in order:
        indices = np.unravel_index(number, [len(values) for values in space.values()])
        setting = dict(params)
        for (name, values), index in zip(space.items(), indices, strict=True):
            setting[name] = values[index]
        # The default is the first setting already.
        if model(**setting) != model(**params) and len(settings) < count:
            settings.append(setting)
    return settings


def measure_of(evaluation: Mapping[str, Any]) -> str:
    """Return the column with the score: that of clients' own models if the grid evaluates them."""
    if "personal" in evaluation:
        return "personal_held_out_balanced_accuracy"
    if evaluation.get("per_client"):
        return "client_balanced_accuracy"
    return "balanced_accuracy"


def label_of(method: str, setting: int) -> str:
    """Return the label of a setting in the run folders."""
    return f"{method} #{setting}"


def trained(
    keys: Mapping[str, Any],
    settings: Mapping[str, Mapping[int, Mapping[str, Any]]],
    seed: int,
    folder: Path,
) -> pd.DataFrame:
    """Train settings with one seed and return their scores by label, set and ε.

    Args:
        keys: the keys of the grid that all methods share.
        settings: the parameters of every setting, by method and number.
        seed: the seed.
        folder: the run folder.

    Returns:
        A frame with one row per training: ``label``; the set and ε as a text (``point``); and the
        score over the ceiling (``share``), NaN if the training failed.
    """
    entries = []
    for method, of_method in settings.items():
        for number, params in of_method.items():
            label = label_of(method, number)
            entries.append({"name": method, "params": dict(params), "label": label})
    grid = {
        **keys,
        "name": f"search-seed-{seed}",
        "algorithms": entries,
        "seeds": [seed],
    }
    run = fedsim.bench(grid, out=folder, yes=True)
    assert isinstance(run, fedsim.Run)
    rows = run.rows
    points = []
    for dataset, epsilon in zip(rows["dataset"], rows["epsilon_target"], strict=True):
        budget = f"ε = {epsilon:g}".replace("inf", "∞").replace("ε = nan", "no ε")
        points.append(f"{dataset}, {budget}")
    share = rows[measure_of(keys["evaluation"])] / rows["ceiling_balanced_accuracy"]
    return rows[["label"]].assign(point=points, share=share)


def points_of(rows: pd.DataFrame, label: str) -> dict[str, float]:
    """Return the mean score of a setting over seeds, at each set and ε.

    Args:
        rows: the scores that :func:`trained` returned, for one seed or for both.
        label: the label of the setting.
    """
    of_setting = rows[rows["label"] == label]
    shares = of_setting.groupby("point", sort=False)["share"]
    # NumPy's mean is NaN if a training failed; that of pandas would leave the training out.
    return {str(point): float(np.mean(of_point.to_numpy())) for point, of_point in shares}


def score_of(points: Mapping[str, float], expected: int) -> float:
    """Return the mean score over sets and ε, or NaN if one of them has no score.

    Args:
        points: the scores of a setting, by set and ε.
        expected: the number of sets and ε.
    """
    if len(points) < expected:
        return math.nan
    return float(np.mean(list(points.values())))


def expected_points(rows: pd.DataFrame, method: str) -> int:
    """Return the number of sets and ε at which a method was trained."""
    of_method = rows["label"].str.startswith(f"{method} #")
    return int(rows[of_method]["point"].nunique())


def finalists_of(rows: pd.DataFrame, method: str, settings: Sequence[Any]) -> list[int]:
    """Return the numbers of the best third of a method's settings, and of the default.

    Args:
        rows: the scores with the first seed.
        method: the method.
        settings: the settings of the method.
    """
    expected = expected_points(rows, method)
    scores = {}
    for number in range(len(settings)):
        score = score_of(points_of(rows, label_of(method, number)), expected)
        if math.isfinite(score):
            scores[number] = score
    order = sorted(scores, key=lambda number: (-scores[number], number))
    best = order[: max(1, len(settings) // FINALISTS)]
    if 0 not in best:
        best.append(0)
    return best


def scored(
    first: pd.DataFrame,
    second: pd.DataFrame,
    method: str,
    settings: Sequence[Mapping[str, Any]],
    finalists: Sequence[int],
) -> list[Scored]:
    """Return all settings of a method with their scores, and mark the one that wins.

    Args:
        first: the scores with the first seed.
        second: the scores of the finalists with the second seed.
        method: the method.
        settings: the parameters of the settings.
        finalists: the numbers of the finalists.
    """
    expected = expected_points(first, method)
    rows = pd.concat([first, second])
    both = {}
    for number in finalists:
        score = score_of(points_of(rows, label_of(method, number)), expected)
        if math.isfinite(score):
            both[number] = score
    winner = max(both, key=lambda number: (both[number], -number))
    if both[winner] <= both.get(0, -math.inf) + LEAST_GAIN:
        winner = 0
    results = []
    for number, params in enumerate(settings):
        label = label_of(method, number)
        result = Scored(
            method=method,
            setting=number,
            params=dict(params),
            first=score_of(points_of(first, label), expected),
            both=both.get(number, math.nan),
            points=points_of(rows, label),
            wins=number == winner,
        )
        results.append(result)
    return results


def searched(
    keys: Mapping[str, Any],
    settings: Mapping[str, Sequence[Mapping[str, Any]]],
    folder: Path,
) -> list[Scored]:
    """Search the settings of all methods and return them with their scores."""
    numbered = {method: dict(enumerate(of_method)) for method, of_method in settings.items()}
    first = trained(keys, numbered, FIRST_SEED, folder / "first")
    finalists = {
        method: finalists_of(first, method, of_method) for method, of_method in settings.items()
    }
    chosen = {
        method: {number: settings[method][number] for number in numbers}
        for method, numbers in finalists.items()
    }
    second = trained(keys, chosen, SECOND_SEED, folder / "second")
    results = []
    for method, of_method in settings.items():
        results += scored(first, second, method, of_method, finalists[method])
    return results


def shown(results: Sequence[Scored]) -> Table:
    """Return the table of methods with the settings that were tried and the winner."""
    table = Table("method", "settings", "default", "best", "winner", title="the same search")
    by_method: dict[str, list[Scored]] = {}
    for result in results:
        by_method.setdefault(result.method, []).append(result)
    for method, of_method in by_method.items():
        default = of_method[0].both
        best = max(result.both for result in of_method if math.isfinite(result.both))
        winner = next(result for result in of_method if result.wins)
        params = json.dumps(winner.params) if winner.params else "the default"
        table.add_row(method, str(len(of_method)), f"{default:.3f}", f"{best:.3f}", params)
    return table


def write(results: Sequence[Scored], target: Path) -> None:
    """Write every score; an existing file keeps its records of methods not searched now."""
    records = []
    if target.exists():
        records = json.loads(target.read_text(encoding="utf-8"))
    searched_now = {result.method for result in results}
    records = [record for record in records if record["method"] not in searched_now]
    for result in results:
        record = asdict(result)
        record["both"] = None if math.isnan(result.both) else result.both
        record["first"] = None if math.isnan(result.first) else result.first
        records.append(record)
    target.write_text(json.dumps(records, indent=0) + "\n", encoding="utf-8")


def main() -> None:
    """Search every method that was asked for, print the winners and write every score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the tuning sets")
    parser.add_argument("--grid", type=Path, default=GRID, help="the spaces; default: search.yaml")
    parser.add_argument("--methods", nargs="+", help="some methods; default: all of the grid")
    parser.add_argument("--settings", type=int, help="settings per method; default: the grid's")
    parser.add_argument("--out", type=Path, help="the run folders; default: runs/ and the grid")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    grid = yaml.safe_load(options.grid.read_text(encoding="utf-8"))
    out = options.out or Path("runs") / options.grid.stem
    out.mkdir(parents=True, exist_ok=True)
    datasets = []
    for dataset in grid["dataset"]:
        name = dataset["npz"]
        path = validation_set(options.data / name, GROUPS.get(name), out)
        datasets.append({**dataset, "npz": str(path.absolute())})
    shared = ("epsilon", "partition", "alpha", "clients", "delta", "evaluation")
    keys = {key: grid[key] for key in shared if key in grid}
    keys["dataset"] = datasets
    count = options.settings or grid["tune"]["trials"]
    settings = {}
    for entry in grid["algorithms"]:
        if not options.methods or entry["name"] in options.methods:
            params = entry.get("params", {})
            settings[entry["name"]] = settings_of(entry["name"], params, entry["tune"], count)
    results = searched(keys, settings, out)
    if options.json:
        write(results, options.json)
    Console().print(shown(results))


if __name__ == "__main__":
    main()
