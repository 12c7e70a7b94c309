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
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedsim import __version__
from fedsim.errors import UserError
from fedsim.files import replaced
from fedsim.grid.models import Grid
from fedsim.methods.algorithm import Algorithm
from fedsim.plugins.registry import check_installed, lookup
from fedsim.results.run import FORMAT, Entry, read_manifest
from fedsim.results.store import RESTORE, RunFolder
from fedsim.runs.prepare import Prepared, prepare, this_machine

RELEASE_WORDS = {
    "seeded": "simulation only: the seed of all noise is in this folder, so nothing in it may be released",
    "secret": "what `fedsim release` writes of a cell may be released under its epsilon, several under what all of them cost together "
    "(fedsim verify), for training rows and clients as they were given; nothing else in this folder may",
}
"""What may leave a run folder, by where its noise comes from."""
PACKAGES = ("ray", "torch", "opacus", "numpy", "scikit-learn", "scipy")


def prepared_again(folder: RunFolder, *, trust_plugin: bool) -> Prepared:
    """The grid that a run folder's manifest holds, prepared for this machine without the plug-ins that were refused.

    The code of algorithms that it names as a file or a module that is not installed only runs with ``trust_plugin``.
    """
    folder.check()
    manifest = read_manifest(folder.path)
    try:
        grid, refused = Grid.model_validate(manifest["grid"]), {entry["algorithm"] for entry in manifest["refused"]}
    except (KeyError, ValidationError) as error:
        raise UserError(str(folder.manifest), "cannot be read (it has no grid of this version)", RESTORE) from error
    grid = grid.model_copy(update={"algorithms": tuple(entry for entry in grid.algorithms if entry.display not in refused)})
    for entry in () if trust_plugin else grid.algorithms:
        check_installed(entry.name, str(folder.manifest))
    return prepare(grid, [this_machine()])


def write_manifest(folder: RunFolder, prepared: Prepared, entries: Sequence[Entry]) -> None:
    """Write ``manifest.json``: versions, revision, hardware, the resolved grid, its cells, refused plug-ins; replaces an older."""
    manifest = {
        "format": FORMAT,
        "versions": versions(),
        "revision": revision(),
        "hardware": hardware(),
        "command": shlex.join(["fedsim", *sys.argv[1:]]),
        "started": now(),
        "release": RELEASE_WORDS[prepared.grid.privacy.noise],
        "grid": prepared.grid.model_dump(mode="json"),
        "methods": [_method(one.display, lookup(one.name)) for i, one in enumerate(prepared.grid.algorithms) if i not in prepared.refused],
        "refused": [{"algorithm": prepared.grid.algorithms[i].display, "error": str(error)} for i, error in prepared.refused.items()],
        "cells": [asdict(entry) for entry in entries],
    }
    with replaced(folder.manifest) as part:
        part.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _method(label: str, cls: type[Algorithm]) -> dict[str, str]:
    """A method for readers who do not know it: what its class says it is, and the paper that it follows."""
    text = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0]
    return {"label": label, "text": " ".join(text.replace("`", "").split()), "source": cls.source}


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of everything that computes."""
    return {"python": platform.python_version(), "fedsim": __version__, **{name: version(name) for name in PACKAGES}}


def revision() -> str | None:
    """The git revision of fedsim's source tree, with a mark if it was changed since; None outside a checkout of it."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def hardware() -> dict[str, Any]:
    """Processor, cores and memory of the driver's machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return {"cpu": model, "cores": cores, "memory_gib": round(memory, 1), "system": platform.platform()}
