"""The manifest of a run folder: what ran, on what."""

from __future__ import annotations

import inspect
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedsim import __version__
from fedsim.errors import UserError
from fedsim.files import replaced
from fedsim.grid.cells import judged_id
from fedsim.grid.models import Grid
from fedsim.json_lines import decode, dump, encode
from fedsim.methods.algorithm import Algorithm
from fedsim.plugins.registry import check_installed, lookup, source_of_today
from fedsim.results.join import FORMAT, Entry, RunResults, read_manifest
from fedsim.results.store import RESTORE, RunFolder
from fedsim.runs.prepare import Prepared, prepare, this_machine

RELEASE_WORDS = {
    "seeded": "simulation only: the seed of all noise is in this folder, so nothing in it may be "
    "released",
    "secret": "what `fedsim release` writes of a cell may be released under its epsilon, several "
    "under what all of them cost together "
    "(fedsim verify), for training rows and clients as they were given; nothing else in this "
    "folder may",
}
"""What may leave a run folder, by where its noise comes from."""
ALIKE = (
    "dataset_hash",
    "public_hash",
    "partition",
    "delta",
    "unit",
    "unit_column",
    "trust",
    "noise",
)
METHOD = ("algorithm", "params", "tuning")
"""What two cells share that stand on one page; and that are of one method."""
PACKAGES = ("ray", "torch", "opacus", "numpy", "scikit-learn", "scipy")


def prepared_again(folder: RunFolder, *, trust_plugin: bool) -> Prepared:
    """The grid that a run folder's manifest holds, prepared for this machine without the plug-ins
    that were refused.

    The code of algorithms that it names as a file or a module that is not installed only runs with
    ``trust_plugin``.
    """
    folder.check()
    manifest = read_manifest(folder.path)
    try:
        grid = Grid.model_validate(decode(manifest["grid"]))
        refused = {entry["algorithm"] for entry in manifest["refused"]}
    except (KeyError, ValidationError) as error:
        raise UserError(
            str(folder.manifest), "cannot be read (it has no grid of this version)", RESTORE
        ) from error
    grid = grid.model_copy(
        update={
            "algorithms": tuple(entry for entry in grid.algorithms if entry.display not in refused)
        }
    )
    for entry in () if trust_plugin else grid.algorithms:
        check_installed(entry.name, str(folder.manifest))
    return prepare(grid, [this_machine()])


def write_manifest(
    folder: RunFolder, prepared: Prepared, entries: Sequence[Entry], kept: Sequence[Entry] = ()
) -> None:
    """Write ``manifest.json``: versions, hardware, the resolved grid, its cells and those ``kept``
    of earlier grids, refused plug-ins.
    """
    methods = [
        _method(one.display, lookup(one.name))
        for i, one in enumerate(prepared.grid.algorithms)
        if i not in prepared.refused
    ]
    if kept:
        earlier = read_manifest(folder.path).get("methods", [])
    else:
        earlier = []
    manifest = {
        "format": FORMAT,
        "versions": versions(),
        "revision": revision(),
        "hardware": hardware(),
        "command": shlex.join(["fedsim", *sys.argv[1:]]),
        "started": now(),
        "release": RELEASE_WORDS[prepared.grid.privacy.noise],
        "grid": encode(prepared.grid.model_dump()),
        "methods": [*methods, *(each for each in earlier if each not in methods)],
        "refused": [
            {"algorithm": prepared.grid.algorithms[i].display, "error": str(error)}
            for i, error in prepared.refused.items()
        ],
        "cells": [asdict(entry) for entry in entries],
        "kept": [asdict(entry) for entry in kept],
    }
    with replaced(folder.manifest) as part:
        part.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def earlier_entries(prepared: Prepared, lines: RunResults) -> tuple[list[Entry], list[Entry]]:
    """The cells that the folder's page showed and this grid does not make.

    Returns:
        Those that the page goes on showing: they are ok, of the grid's data and evaluation and of
        today's code; those of a label that the grid has are kept with its parameters alone. Then
        those that it no longer shows, without those that older code of the grid's methods made.
    """
    cells = [trial.cell for trial in prepared.trials]
    ids = {cell.cell_id for cell in cells}
    evaluations = {cell.evaluation for cell in cells}
    alike = set[str]()
    methods = dict[str, str]()
    sources: dict[str, str | None] = {cell.algorithm: cell.source for cell in cells}
    for cell in cells:
        facts = cell.model_dump(mode="json")
        alike.add(_facts(facts, ALIKE))
        methods[cell.label] = _facts(facts, METHOD)
    todays = dict(sources)
    kept = []
    dropped = []
    for entry in lines.entries:
        if entry.cell_id in ids or (row := lines.row(entry)) is None:
            continue
        of = lines.trainings[entry.training_id]["cell"]
        name = of["algorithm"]
        method = _facts(of, METHOD)
        if name not in sources:
            sources[name] = source_of_today(name)
        same = (
            _facts(of, ALIKE) in alike
            and methods.get(entry.label, method) == method
            and of["source"] == sources[name]
        )
        judged_alike = entry.cell_id in {
            judged_id(entry.training_id, evaluation) for evaluation in evaluations
        }
        if row.status == "ok" and same and judged_alike:
            kept.append(entry)
        elif of["source"] == todays.get(of["algorithm"], of["source"]):
            dropped.append(entry)
    return kept, dropped


def _facts(cell: Mapping[str, Any], names: Sequence[str]) -> str:
    return dump([cell[name] for name in names])


def _method(label: str, cls: type[Algorithm]) -> dict[str, str]:
    """A method for readers who do not know it: what its class says it is, and the paper that it
    follows.
    """
    text = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0]
    return {"label": label, "text": " ".join(text.replace("`", "").split()), "source": cls.source}


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of everything that computes."""
    return {
        "python": platform.python_version(),
        "fedsim": __version__,
        **{name: version(name) for name in PACKAGES},
    }


def revision() -> str | None:
    """The git revision of fedsim's source tree, with a mark if it was changed since; None outside a
    checkout of it.
    """
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return None
    command = [
        "git",
        "-C",
        str(folder),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--match=",
    ]
    return (
        subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    )


def hardware() -> dict[str, Any]:
    """Processor, cores and memory of the driver's machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return {
        "cpu": model,
        "cores": cores,
        "memory_gib": round(memory, 1),
        "system": platform.platform(),
    }
