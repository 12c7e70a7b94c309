"""Judging a finished run: its grid's judgements and references that today's code lacks, from what its trainings left."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console

from fedsim.errors import UserError
from fedsim.planning.node import Node
from fedsim.plugins.registry import check_installed
from fedsim.results.grid_rows import entries, read_manifest
from fedsim.results.join import Lines
from fedsim.results.store import ResultStore
from fedsim.results.trained import prepare_trained
from fedsim.runs.bench import run_prepared
from fedsim.runs.engine import Engine
from fedsim.runs.manifest import grid_of
from fedsim.words import counted, print_line


def algorithms_of(folder: Path) -> list[str]:
    """The algorithms of a run's trainings.

    Raises:
        UserError: it is no run folder.
    """
    ResultStore(folder).folder.check()
    return list(dict.fromkeys(line["cell"]["algorithm"] for line in Lines.read(folder).trainings.values()))


def run_judging(
    folder: Path,
    nodes: Sequence[Node],
    console: Console,
    engine: AbstractContextManager[Engine],
    max_parallel: int | None = None,
    *,
    trust_plugin: bool = False,
) -> int:
    """Judge the trainings that a run's manifest lists by its evaluation and the code that is here, then draw the report.

    Trainings stay as they are, whatever code trained them; those whose tensors were not kept keep the judgement that they have.

    Args:
        folder: the run folder.
        nodes: what the cluster has.
        console: where progress and the table of results go.
        engine: entered if there is anything to judge.
        max_parallel: at most so many cells at a time.
        trust_plugin: also run the code of algorithms that trainings name as a file or a module that is not installed.

    Returns:
        The exit code, as :func:`fedsim.runs.bench.run_bench`.

    Raises:
        UserError: there is nothing to judge, a training names a plug-in, data or partitions changed, or another fedsim runs in the folder.
    """
    store = ResultStore(folder)
    store.folder.check()
    with store.lock():
        lines, grid = Lines.read(folder), grid_of(read_manifest(folder), store.folder)
        known = entries(folder, lines)
        ended = [lines.trainings[entry.training_id] for entry in known if entry.training_id in lines.trainings]
        kept = [line for line in ended if line["state"] is not None and store.folder.state(line["training_id"]).exists()]
        if not kept:
            hint = "run the grid with resources: {save_generators: true}, which is the default"
            raise UserError(str(folder), "no training's tensors are kept here, so nothing can be judged", hint)
        if len(kept) < len(known):
            what = f"{len(known) - len(kept)} of {counted(len(known), 'cell')} without kept tensors: left as they are"
            print_line(console, what, "yellow")
        for line in () if trust_plugin else kept:
            check_installed(line["cell"]["algorithm"], str(store.folder.lines("trainings")))
        prepared = prepare_trained(grid, kept, store.folder, nodes, max_parallel)
        others = [entry for entry in known if entry.training_id not in {line["training_id"] for line in kept}]
        return run_prepared(prepared, store, console, engine, others=others)
