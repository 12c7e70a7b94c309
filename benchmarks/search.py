"""The same search for every method: equally many settings, scored on rows of the training part.

    python benchmarks/search.py --data FOLDER [--grid FILE] [--methods NAME ...] [--settings N]
        [--out FOLDER] [--json FILE]

The grid (``search.yaml``) declares the space of every method under ``tune``. The script draws the
same number of settings from each space; the first is the default that the method had before. It
trains them on the training rows of the tuning sets, without a fifth that it keeps as validation
rows, and reads no test row. The score of a setting is the mean, over sets and ε, of balanced
accuracy as a share of the ceiling. It is that of the shared model, or the mean over clients' own
models if the grid evaluates these (``per_client`` or ``personal``). Every setting is trained with
the two seeds of the grid. The best one by the mean of both seeds wins if it is better than the
first by more than 0.005.

The run folder is kept, so a search that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
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
LEAST_GAIN = 0.005
"""A setting replaces the default if its score is better by more than this."""
VALIDATION_FOLDS = 5
"""The number of folds of the training rows; the first fold has the validation rows."""
GROUPS = {"chestxray_dinov2s.npz": "patient"}
"""By file, the column whose equal values stay in one fold."""
STARTS: dict[str, dict[str, Any]] = {
    "fedavg-cvae": {
        "rounds": 10,
        "local_steps": 50,
        "learning_rate": 0.02,
        "latent": 8,
        "beta": 1.0,
    },
    "weight-noise": {
        "rounds": 5,
        "learning_rate": 0.02,
        "latent": 8,
        "encoder_hidden": [64],
        "clip": 3.0,
    },
    "dp-cvae": {"learning_rate": 0.001, "clip": 1.5, "latent": 100, "beta": 0.002},
    "dp-scaffold": {"clip": 0.3},
    "dp-fedavg-linear": {"rounds": 30, "local_steps": 5, "clip": 1.0},
    "fedavg-linear": {"rounds": 100, "learning_rate": 0.002},
    "private-evolution": {"candidates": 400, "votes": 40, "variation": 0.5, "noise": 1.0},
    "fedpft": {"components": 10},
    "ditto": {"learning_rate": 0.001, "own_proximal": 0.1},
}
"""The defaults before the search, of the methods whose defaults it replaced.

A search starts from them, so it tries the same settings as the recorded one.
"""


@dataclass(frozen=True)
class Scored:
    """One setting of one method with its scores.

    Attributes:
        method: the method.
        setting: the number of the setting; 0 is the default.
        params: the parameters that differ from the default.
        both: the mean score of both seeds, sets and ε; None if a training failed.
        points: the mean score at each set and ε of the trainings that did not fail.
        wins: whether the setting is the method's new default.
    """

    method: str
    setting: int
    params: dict[str, Any]
    both: float | None
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


def tuning_keys(grid: Mapping[str, Any], data: Path, folder: Path) -> dict[str, Any]:
    """Return the keys of a grid that all its methods share, with validation rows in its sets.

    Args:
        grid: the grid of a search.
        data: the folder of the tuning sets.
        folder: the folder of the new files with validation rows.
    """
    datasets = []
    for dataset in grid["dataset"]:
        name = dataset["npz"]
        path = validation_set(data / name, GROUPS.get(name), folder)
        datasets.append({**dataset, "npz": str(path.absolute())})
    shared = ("epsilon", "partition", "alpha", "clients", "seeds", "delta", "evaluation")
    keys = {key: grid[key] for key in shared if key in grid}
    keys["dataset"] = datasets
    return keys


def shuffled_points(space: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yield all points of a space, each with one value per name, in an order that never changes."""
    sizes = [len(values) for values in space.values()]
    order = np.random.Generator(np.random.PCG64(0)).permutation(math.prod(sizes))
    for number in order:
        indices = np.unravel_index(number, sizes)
        point = {}
        for (name, values), index in zip(space.items(), indices, strict=True):
            point[name] = values[index]
        yield point


def point_text(dataset: str, epsilon: float) -> str:
    """Return how the scores name a set and an ε; NaN stands for a method without ε."""
    budget = f"ε = {epsilon:g}".replace("inf", "∞").replace("ε = nan", "no ε")
    return f"{dataset}, {budget}"


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
    model = lookup(method).Params
    settings = [dict(params)]
    for point in shuffled_points(space):
        setting = {**params, **point}
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


def trained(
    keys: Mapping[str, Any],
    settings: Mapping[str, Sequence[Mapping[str, Any]]],
    folder: Path,
) -> pd.DataFrame:
    """Train all settings with both seeds and return their scores.

    Args:
        keys: the keys of the grid that all methods share.
        settings: the parameters of every setting, by method.
        folder: the run folder.

    Returns:
        A frame with one row per training: ``method``; the number of the setting (``setting``); the
        set and ε as a text (``point``); ``seed``; and the score over the ceiling (``share``), NaN
        if the training failed.
    """
    entries = []
    numbers = {}
    for method, of_method in settings.items():
        for number, params in enumerate(of_method):
            label = f"{method} #{number}"
            entries.append({"name": method, "params": dict(params), "label": label})
            numbers[label] = number
    grid = {**keys, "name": "search", "algorithms": entries}
    run = fedsim.bench(grid, out=folder, yes=True)
    assert isinstance(run, fedsim.Run)
    rows = run.rows
    points = []
    for dataset, epsilon in zip(rows["dataset"], rows["epsilon_target"], strict=True):
        points.append(point_text(dataset, epsilon))
    share = rows[measure_of(keys["evaluation"])] / rows["ceiling_balanced_accuracy"]
    return pd.DataFrame(
        {
            "method": rows["algorithm"],
            "setting": rows["label"].map(numbers),
            "point": points,
            "seed": rows["seed"],
            "share": share,
        }
    )


def scored(
    rows: pd.DataFrame,
    method: str,
    settings: Sequence[Mapping[str, Any]],
) -> list[Scored]:
    """Return all settings of a method with their scores, and mark the one that wins.

    Args:
        rows: the scores that :func:`trained` returned.
        method: the method.
        settings: the parameters of the settings; the first is the default.
    """
    of_method = rows[rows["method"] == method]
    # One row per setting and one column per training; NaN where a training failed.
    shares = of_method.pivot(index="setting", columns=["point", "seed"], values="share")
    shares = shares.reindex(range(len(settings)))
    means = shares.mean(axis=1, skipna=False)
    scores = {number: float(mean) for number, mean in enumerate(means) if math.isfinite(mean)}
    winner = max(scores, key=lambda number: (scores[number], -number), default=0)
    if scores.get(winner, -math.inf) <= scores.get(0, -math.inf) + LEAST_GAIN:
        winner = 0
    points = of_method["point"].unique()
    results = []
    for number, params in enumerate(settings):
        result = Scored(
            method=method,
            setting=number,
            params=dict(params),
            both=scores.get(number),
            points={point: float(shares.loc[number, point].mean()) for point in points},
            wins=number == winner,
        )
        results.append(result)
    return results


def shown(results: Sequence[Scored]) -> Table:
    """Return the table of methods with the settings that were tried and the winner."""
    table = Table("method", "settings", "default", "best", "winner", title="the same search")
    by_method: dict[str, list[Scored]] = {}
    for result in results:
        by_method.setdefault(result.method, []).append(result)
    for method, of_method in by_method.items():
        default = of_method[0].both
        best = max(result.both for result in of_method if result.both is not None)
        winner = next(result for result in of_method if result.wins)
        params = json.dumps(winner.params) if winner.params else "the default"
        shown_default = "failed" if default is None else f"{default:.3f}"
        table.add_row(method, str(len(of_method)), shown_default, f"{best:.3f}", params)
    return table


def write(results: Sequence[Scored], target: Path) -> None:
    """Write every score; an existing file keeps its records of methods not searched now."""
    records = []
    if target.exists():
        records = json.loads(target.read_text(encoding="utf-8"))
    searched_now = {result.method for result in results}
    records = [record for record in records if record["method"] not in searched_now]
    for result in results:
        records.append(asdict(result))
    target.write_text(json.dumps(records, indent=0) + "\n", encoding="utf-8")


def main() -> None:
    """Search every method that was asked for, print the winners and write every score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the tuning sets")
    parser.add_argument("--grid", type=Path, default=GRID, help="the spaces; default: search.yaml")
    parser.add_argument("--methods", nargs="+", help="some methods; default: all of the grid")
    parser.add_argument("--settings", type=int, help="settings per method; default: the grid's")
    parser.add_argument("--out", type=Path, help="the run's folder; default: runs/ and the grid")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    grid = yaml.safe_load(options.grid.read_text(encoding="utf-8"))
    entries = {entry["name"]: entry for entry in grid["algorithms"]}
    methods = options.methods or list(entries)
    for method in methods:
        if method not in entries:
            known = ", ".join(entries)
            parser.error(f"{options.grid} has no method {method}; it has {known}")
    out = options.out or Path("runs") / options.grid.stem
    out.mkdir(parents=True, exist_ok=True)
    keys = tuning_keys(grid, options.data, out)
    count = options.settings or grid["tune"]["trials"]
    settings = {}
    for method in methods:
        entry = entries[method]
        params = entry.get("params", {}) | STARTS.get(method, {})
        settings[method] = settings_of(method, params, entry["tune"], count)
    rows = trained(keys, settings, out / "run")
    results = []
    for method, of_method in settings.items():
        results += scored(rows, method, of_method)
    if options.json:
        write(results, options.json)
    Console().print(shown(results))


if __name__ == "__main__":
    main()
