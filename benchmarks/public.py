"""What public rows are worth at epsilon 1: each method with them and without, where rows are few and on whole data sets.

    python benchmarks/public.py --data FOLDER [--seeds 5] [--grids NAME ...] [--out runs/public] [--json FILE] [--markdown FILE]

FOLDER holds embeddings by EfficientNet-Lite0, files that benchmarks/README.md names: NAME_effnetlite0.npz. Public rows are
those of another modality (blood cells for CT, CT for skin), or of the same modality from another site: two sites of HAM10000 are private,
another one is public. Shares of the ceiling, means over seeds; the run folder keeps every row, and the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

import fedsim

FEW = (500, 1000, 2000)
DIRECTIONS = 128
GRIDS = ("other-modality", "other-hospital", "whole-CT", "whole-skin")
WITHOUT: tuple[dict[str, Any], ...] = tuple({"name": name} for name in ("fedhypevae-warm", "dp-gaussian", "dp-least-squares"))
SUBSPACE = tuple({**entry, "params": {"project": DIRECTIONS}, "label": f"{entry['name']}, subspace"} for entry in WITHOUT)
VOTES = (
    {"name": "private-evolution", "params": {"start": "drawn"}},
    {"name": "private-evolution", "label": "private-evolution, public rows"},
)
OWN, OTHER = ("rosendahl", "vienna_dias"), "vidir_molemax"
"""Sites whose rows are private, and the one whose rows are public."""


def main() -> None:
    """Run the grids, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/public"))
    parser.add_argument("--grids", nargs="+", metavar="NAME", default=GRIDS, choices=GRIDS, help="some of them; default: all")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    lines: list[dict[str, Any]] = []
    made_of = grids(options.data, options.out, options.seeds)
    for name in options.grids:
        run = fedsim.bench(made_of[name], out=options.out / name, in_process=True)
        lines += [{"grid": name, **line} for line in shares(run.rows)]
    made = {
        "command": f"python benchmarks/public.py --data FOLDER --seeds {options.seeds} --grids {' '.join(options.grids)}",
        **circumstances(),
        "lines": lines,
    }
    text = "\n".join(table(lines))
    print(text)
    if options.json is not None:
        options.json.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    if options.markdown is not None:
        head = (
            f"`{made['command']}`, revision {made['revision']}, {made['machine']}. ε = 1, δ = 1e-4, 10 clients, α = 0.3; k = {DIRECTIONS}."
        )
        head += f" Means over {options.seeds} seeds; in brackets the least and the largest gain of a seed."
        options.markdown.write_text(f"# What public rows are worth\n\n{head}\n\n{text}\n", encoding="utf-8")


def grids(data: Path, out: Path, seeds: int) -> dict[str, dict[str, Any]]:
    """A grid for every public data set."""
    organ, blood, skin = (data / f"{name}_effnetlite0.npz" for name in ("organamnist", "bloodmnist", "ham10000_sites"))
    private, public = by_site(skin, out)
    common = {"clients": 10, "alpha": 0.3, "epsilon": 1.0, "seeds": list(range(seeds)), "evaluation": {"readouts": []}}
    few = common | {"algorithms": [*WITHOUT, *SUBSPACE, *VOTES]}
    whole = common | {"algorithms": [*WITHOUT, *SUBSPACE, {"name": "fedhypevae"}]}
    return {
        "other-modality": few | {"dataset": limited(organ, "OrganAMNIST"), "public": {"npz": str(blood), "name": "BloodMNIST"}},
        "other-hospital": few | {"dataset": limited(private, "HAM10000, two sites"), "public": {"npz": str(public), "name": OTHER}},
        "whole-CT": whole | {"dataset": {"npz": str(organ), "name": "OrganAMNIST"}, "public": {"npz": str(blood), "name": "BloodMNIST"}},
        "whole-skin": whole | {"dataset": {"npz": str(skin), "name": "HAM10000"}, "public": {"npz": str(organ), "name": "OrganAMNIST"}},
    }


def limited(path: Path, name: str) -> list[dict[str, Any]]:
    """A data set at every number of training rows."""
    return [{"npz": str(path), "name": name, "limit": rows} for rows in FEW]


def by_site(path: Path, out: Path) -> tuple[Path, Path]:
    """HAM10000 as two files: the private sites' rows, and the public site's, without labels."""
    out.mkdir(parents=True, exist_ok=True)
    held = np.load(path, allow_pickle=False)
    private, public = np.isin(held["site"], OWN), held["site"] == OTHER
    np.savez(out / "private.npz", **{name: held[name][private] for name in ("x", "y", "split")})
    np.savez(out / "public.npz", x=held["x"][public])
    return (out / "private.npz").absolute(), (out / "public.npz").absolute()


def shares(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """A line a data set and method: the share of the ceiling at every seed, and the gain over the same method without public rows."""
    lines = []
    for (dataset, label), own in rows.groupby(["dataset", "label"], sort=False):
        without = rows[(rows["dataset"] == dataset) & (rows["label"] == label.partition(",")[0])]
        paired = own.set_index("seed")["share_of_ceiling"] - without.set_index("seed")["share_of_ceiling"]
        lines.append(
            {
                "dataset": dataset,
                "method": label,
                "public": own["public"].dropna().unique().tolist()[0] if own["public"].notna().any() else None,
                "seeds": len(own),
                "share": round(fmean(own["share_of_ceiling"]), 4),
                "gain": round(float(paired.mean()), 4),
                "gain_by_seed": [round(float(value), 4) for value in paired],
                "ceiling": round(fmean(own["ceiling_balanced_accuracy"]), 4),
            }
        )
    return lines


def table(lines: list[dict[str, Any]]) -> list[str]:
    """Markdown."""
    made = ["| data | public | method | share of the ceiling | gain by public rows |", "| --- | --- | --- | ---: | ---: |"]
    for line in lines:
        paired = line["public"] and "," in line["method"]
        gain = f"{line['gain']:+.3f} ({min(line['gain_by_seed']):+.3f} to {max(line['gain_by_seed']):+.3f})" if paired else "–"
        made.append(f"| {line['dataset']} | {line['public'] or '–'} | {line['method']} | {line['share']:.3f} | {gain} |")
    return made


def circumstances() -> dict[str, str]:
    """What else a number depends on."""
    folder = Path(__file__).resolve().parent
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=False).stdout
    return {"revision": revision.strip(), "machine": f"{platform.machine()}, one thread a cell", "fedsim": fedsim.__version__}


if __name__ == "__main__":
    main()
