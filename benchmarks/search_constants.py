"""The search of ``search.py`` for constants of our closed forms that no parameter of a grid sets.

    python benchmarks/search_constants.py --data FOLDER [--methods NAME ...] [--out FOLDER]
        [--json FILE]

The rules are those of ``search.py``: the same tuning sets, validation rows, seeds, number of
settings and least gain, and no test row is read. Constants are attributes of modules, so the script
trains in its own process, where it can change them. The scores are recorded under the name of the
method and the word ``constants``. A setting of ``fedhypevae-warm`` takes three to five minutes on
one core. The folder of the run keeps its scores, so a search that was stopped goes on where it was.
It does not notice that the code has changed; delete the folder then.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from rich.console import Console
from search import (
    measure_of,
    point_text,
    scored,
    shown,
    shuffled_points,
    trained,
    tuning_keys,
    write,
)
from sklearn.exceptions import ConvergenceWarning

from algorithms import class_block, fedhypevae_sites, fedhypevae_warm
from fedsim.evaluation.evaluate import cell_evaluator
from fedsim.grid.models import Grid
from fedsim.grid.models import shown as dataset_name
from fedsim.runs.prepare import Node, prepare
from fedsim.training.trial import Outcome, run_trial

FOLDER = Path(__file__).parent
GRIDS = {"fedhypevae-warm": "search.yaml", "fedhypevae-sites": "search_sites.yaml"}
"""By method, the grid with its tuning sets, ε and evaluation."""
OF_BOTH = {
    "clip": [0.5, 0.7, 1.0],
    "reach": [1.0, 1.5, 2.0],
    "closeness": [0.65, 0.75, 0.9],
    "overlap": [0.9, 1.8, 3.0],
}
"""The constants that are searched for both methods."""
SPACES: dict[str, dict[str, list[float]]] = {
    "fedhypevae-warm": OF_BOTH
    | {
        "floor": [0.3, 0.6, 0.9],
        "resolution": [0.06, 0.12, 0.24],
        "share of class means": [0.25, 0.37, 0.5],
    },
    "fedhypevae-sites": OF_BOTH
    | {
        "apart": [0.25, 0.5, 1.0],
        "site_second": [0.2, 0.4, 0.8],
        "share of site moments": [0.07, 0.14, 0.28],
    },
}
"""By method, the values of each constant; its value in the code is the one in the middle."""
SETTINGS = 24
SHARE = "share of "
"""What stands before the name of a release in the name of its share of the budget."""


@contextmanager
def constants_changed(method: str, values: Mapping[str, float]) -> Iterator[None]:
    """Give constants of a method other values for the body of a ``with`` statement.

    If a release gets another share of the budget, the shares of all others keep their proportions.

    Args:
        method: the method, a key of :data:`SPACES`.
        values: the new value of each constant that changes.
    """
    of_warm = {field.name for field in fields(fedhypevae_warm.TunedWarm)}
    of_block = {field.name for field in fields(class_block.TunedBlock)}
    class_of = {
        "fedhypevae-warm": fedhypevae_warm.FedHypeVAEWarm,
        "fedhypevae-sites": fedhypevae_sites.FedHypeVAESites,
    }[method]
    warm = fedhypevae_warm.TUNED
    block = class_block.TUNED
    site_weights = class_block.SITE_WEIGHTS
    apart = fedhypevae_sites.APART
    shares = class_of.shares
    new_shares = dict(shares)
    for name, value in values.items():
        if name in of_warm:
            fedhypevae_warm.TUNED = replace(fedhypevae_warm.TUNED, **{name: value})
        elif name in of_block:
            class_block.TUNED = replace(class_block.TUNED, **{name: value})
        elif name in site_weights:
            class_block.SITE_WEIGHTS = class_block.SITE_WEIGHTS | {name: value}
        elif name == "apart":
            fedhypevae_sites.APART = value
        else:
            release = name.removeprefix(SHARE)
            left = (1 - value) / (1 - shares[release])
            new_shares = {other: share * left for other, share in shares.items()}
            new_shares[release] = value
    class_of.shares = new_shares
    try:
        yield
    finally:
        fedhypevae_warm.TUNED = warm
        class_block.TUNED = block
        class_block.SITE_WEIGHTS = site_weights
        fedhypevae_sites.APART = apart
        class_of.shares = shares


def settings_of(method: str) -> list[dict[str, float]]:
    """Return the values in the code, as an empty setting, and 23 random points of the space."""
    space = SPACES[method]
    in_code = {name: values[1] for name, values in space.items()}
    others = [point for point in shuffled_points(space) if point != in_code]
    return [{}, *others[: SETTINGS - 1]]


def trained_here(
    keys: Mapping[str, Any],
    method: str,
    setting: int,
    values: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Train a setting on every set, ε and seed, and return one record for each training.

    Args:
        keys: the keys of the grid that all settings share.
        method: the method.
        setting: the number of the setting.
        values: the values of its constants.

    Returns:
        Records with the ``method``, the ``setting``, its ``point`` (the set and ε), the ``seed``
        and its ``score``.
    """
    measure = measure_of(keys["evaluation"])
    grid = Grid.model_validate({**keys, "algorithms": [method]})
    records = []
    with constants_changed(method, values):
        # The grid is planned for a machine with 2 CPUs and no GPU.
        prepared = prepare(grid, [Node(2.0, 0.0)])
        for trial in prepared.trials:
            data = prepared.data[trial.data_key]
            *_, outcome = run_trial(trial, data)
            assert isinstance(outcome, Outcome)
            scores = cell_evaluator(trial, outcome.state, data).result().scores
            record = {
                "method": method,
                "setting": setting,
                "point": point_text(dataset_name(trial.cell.dataset, None), trial.cell.epsilon),
                "seed": trial.cell.seed,
                "score": scores[measure],
            }
            records.append(record)
    return records


def trained_once(
    keys: Mapping[str, Any],
    method: str,
    settings: Sequence[Mapping[str, float]],
    folder: Path,
) -> pd.DataFrame:
    """Return the records of :func:`trained_here` of all settings, and keep them in a file.

    A setting whose records are in the file already is not trained again.

    Args:
        keys: the keys of the grid that all settings share.
        method: the method.
        settings: the values of the constants of every setting.
        folder: the folder of the file.
    """
    file = folder / "settings.jsonl"
    known = []
    if file.exists():
        known = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    records = []
    for number, values in enumerate(settings):
        kept = [line["records"] for line in known if line["values"] == values]
        if not kept:
            print(f"{method}: setting {number} of {len(settings)}", flush=True)
            kept = [trained_here(keys, method, number, values)]
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"values": values, "records": kept[0]}) + "\n")
        records += kept[0]
    return pd.DataFrame(records)


def main() -> None:
    """Search the constants of every method, print the winners and write every score."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of the tuning sets")
    parser.add_argument("--methods", nargs="+", choices=list(SPACES), default=list(SPACES))
    parser.add_argument("--out", type=Path, default=Path("runs/search-constants"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    results = []
    for method in options.methods:
        grid = yaml.safe_load((FOLDER / GRIDS[method]).read_text(encoding="utf-8"))
        out = options.out / method
        out.mkdir(parents=True, exist_ok=True)
        keys = tuning_keys(grid, options.data, out)
        print(f"{method}: the values in the code, by fedsim bench")
        by_bench = trained(keys, {method: [{}]}, out / "run")
        settings = settings_of(method)
        rows = trained_once(keys, method, settings, out)
        # The ceiling of a point and seed is the score of the code's values divided by their share.
        shares = by_bench.set_index(["point", "seed"])["share"]
        scores = rows[rows["setting"] == 0].set_index(["point", "seed"])["score"]
        ceilings = (scores / shares).rename("ceiling").reset_index()
        rows = rows.merge(ceilings, on=["point", "seed"])
        rows["share"] = rows["score"] / rows["ceiling"]
        rows["method"] = f"{method}, constants"
        results += scored(rows, f"{method}, constants", settings)
    if options.json:
        write(results, options.json)
    Console().print(shown(results))


if __name__ == "__main__":
    main()
