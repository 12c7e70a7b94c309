"""The manifest of a run folder, which says what ran, and on which versions and hardware."""

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
from fedsim.grid.cells import evaluation_id
from fedsim.grid.models import Grid, Published, Resources
from fedsim.json_lines import decode, dump, encode
from fedsim.methods.algorithm import Algorithm
from fedsim.plugins.registry import check_installed, lookup, source_of_today
from fedsim.results.join import FORMAT, Entry, RunResults, claim_of, read_manifest
from fedsim.results.store import RESTORE, RunFolder
from fedsim.runs.prepare import Prepared, prepare, this_machine

RELEASE_WORDS = {
    "seeded": "simulation only: the seed of all noise is in this folder, so nothing in it may be "
    "released",
    "secret": "the package that `fedsim release` writes of a cell may be released under the cell's "
    "epsilon; several packages together cost the epsilon that `fedsim verify` computes; both hold "
    "for the training rows and clients as they were given; nothing else in this folder may be "
    "released",
}
"""What may leave a run folder, by the source of its noise."""
PAGE_FIELDS = (
    "dataset_hash",
    "public_hash",
    "partition",
    "delta",
    "unit",
    "unit_column",
    "trust",
    "noise",
)
"""The fields of a cell by which a report decides whether it still shows the cell.

They must be those of some cell of the grid.
"""
PACKAGES = ("ray", "torch", "opacus", "numpy", "scikit-learn", "scipy")
"""The packages whose versions are recorded, because they compute or move numbers."""


def prepared_again(
    folder: RunFolder,
    *,
    trust_plugin: bool,
    runs_cells: bool = False,
) -> Prepared:
    """Return the grid of a run folder, prepared for this machine.

    Args:
        folder: the run folder. Plug-ins that its bench refused are left out.
        trust_plugin: whether to run the code of algorithms that the grid names as a file or as a
            module that is not installed.
        runs_cells: whether cells are to run with the resources that the grid asks for. If not, this
            machine may have less.

    Raises:
        UserError: the folder has no results, its manifest cannot be read, the grid names code
            that is not trusted, or the grid cannot be prepared on this machine.
    """
    folder.check()
    manifest = read_manifest(folder.path)
    where = str(folder.manifest)
    try:
        grid = Grid.model_validate(decode(manifest["grid"]))
        refused = {entry["algorithm"] for entry in manifest["refused"]}
    except (KeyError, ValidationError) as error:
        what = "cannot be read (it has no grid of this version)"
        raise UserError(where, what, RESTORE) from error
    entries = []
    for entry in grid.running.values():
        if entry.display in refused:
            continue
        if not trust_plugin:
            check_installed(entry.name, where)
        entries.append(entry)
    grid = grid.model_copy(update={"algorithms": tuple(entries)})
    if not runs_cells:
        grid = grid.model_copy(update={"resources": Resources()})
    return prepare(grid, [this_machine()])


def write_manifest(
    folder: RunFolder,
    prepared: Prepared,
    entries: Sequence[Entry],
    kept: Sequence[Entry] = (),
) -> None:
    """Write ``manifest.json``, which describes the run: its grid, code, hardware and cells.

    Args:
        folder: the run folder.
        prepared: the grid; its refused plug-ins are listed, too.
        entries: the cells of the grid.
        kept: the cells of earlier grids that the report still shows.
    """
    grid = prepared.grid
    methods = [
        _describe_method(entry.display, lookup(entry.name))
        for position, entry in grid.running.items()
        if position not in prepared.refused
    ]
    if kept:
        earlier_methods = read_manifest(folder.path).get("methods", [])
        methods += [method for method in earlier_methods if method not in methods]
    manifest = {
        "format": FORMAT,
        "versions": versions(),
        "revision": revision(),
        "hardware": hardware(),
        "command": shlex.join(["fedsim", *sys.argv[1:]]),
        "started": now(),
        "release": RELEASE_WORDS[grid.privacy.noise],
        "grid": encode(grid.model_dump()),
        "methods": methods,
        "published": [
            entry.model_dump(mode="json")
            for entry in grid.algorithms
            if isinstance(entry, Published)
        ],
        "refused": [
            {"algorithm": grid.algorithms[position].display, "error": str(error)}
            for position, error in prepared.refused.items()
        ],
        "cells": [asdict(entry) for entry in entries],
        "kept": [asdict(entry) for entry in kept],
    }
    with replaced(folder.manifest) as file:
        file.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def earlier_entries(prepared: Prepared, lines: RunResults) -> tuple[list[Entry], list[Entry]]:
    """Divide the cells that the report showed so far and that are no cells of this grid.

    Returns:
        Two lists. The first has the cells that the report still shows: their result is ok, their
            data, privacy and evaluation are those of some cell of the grid, and their code has not
            changed. If their label is one of the grid's, their parameters are the grid's, too. The
            second list has the other cells, which the report no longer shows.
    """
    ids_in_grid = set()
    evaluations = set()
    pages = set()
    methods: dict[str, str] = {}
    sources: dict[str, str | None] = {}
    for trial in prepared.trials:
        cell = trial.cell
        fields = cell.model_dump(mode="json")
        ids_in_grid.add(cell.cell_id)
        evaluations.add(cell.evaluation)
        pages.add(_page_of(fields))
        methods[cell.label] = _method_of(fields)
        sources[cell.algorithm] = cell.source
    kept = []
    dropped = []
    for entry in lines.entries:
        row = lines.row(entry)
        if row is None or entry.cell_id in ids_in_grid:
            continue
        recorded_cell = lines.trainings[entry.training_id]["cell"]
        algorithm = recorded_cell["algorithm"]
        if algorithm not in sources:
            sources[algorithm] = source_of_today(algorithm)
        method = _method_of(recorded_cell)
        # The id of a cell says which evaluation, and which code of it, gave its scores.
        ids_of_today = {evaluation_id(entry.training_id, evaluation) for evaluation in evaluations}
        if (
            row.status == "ok"
            and entry.cell_id in ids_of_today
            and _page_of(recorded_cell) in pages
            and methods.get(entry.label, method) == method
            and recorded_cell["source"] == sources[algorithm]
        ):
            kept.append(entry)
        else:
            dropped.append(entry)
    return kept, dropped


def _page_of(cell: Mapping[str, Any]) -> str:
    """Return the values of a cell's :data:`PAGE_FIELDS` as one text, to compare them."""
    return dump([cell[name] for name in PAGE_FIELDS])


def _method_of(cell: Mapping[str, Any]) -> str:
    """Return the method of a cell and its parameters as one text, without what a search chose."""
    return claim_of({**cell, **dict.fromkeys(("source", "unit", "trust", "epsilon", "delta"))})


def _describe_method(label: str, cls: type[Algorithm]) -> dict[str, str]:
    """Return the label of a method, what its class says about it, and the paper it follows.

    The text is the first paragraph of the docstring of the class.
    """
    docstring = inspect.cleandoc(cls.__doc__ or "")
    first_paragraph, _, _ = docstring.partition("\n\n")
    words = first_paragraph.replace("`", "").split()
    return {
        "label": label,
        "text": " ".join(words),
        "source": cls.source,
    }


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the versions of Python, of fedsim and of :data:`PACKAGES`."""
    own_versions = {"python": platform.python_version(), "fedsim": __version__}
    return own_versions | {name: version(name) for name in PACKAGES}


def revision() -> str | None:
    """Return the git revision of fedsim's source tree.

    Returns:
        The revision, with ``-dirty`` at its end if a file has changed since. None outside a
            checkout of fedsim and on a machine without git.
    """
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return None
    command = ["git", "-C", str(folder), "describe"]
    command += ["--always", "--dirty", "--abbrev=12", "--match="]
    git = subprocess.run(command, capture_output=True, text=True, check=False)
    return git.stdout.strip() or None


def hardware() -> dict[str, Any]:
    """Return the processor, cores, memory in GiB and system of the driver's machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "system": platform.platform(),
    }


def _processor() -> str:
    """Return the name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
