"""Grids: run one, or see what it would do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.api.run import Run
from fedsim.errors import UserError
from fedsim.interrupts import INTERRUPTED, kept_handlers
from fedsim.plugins.registry import NOTEBOOK, check_importable, find_in_working_folder
from fedsim.words import counted, plain_console

if TYPE_CHECKING:
    from fedsim.runs.plan_view import Plan


def bench(
    grid: Path | str | Mapping[str, Any],
    *,
    out: Path | None = None,
    set: Sequence[str] | Mapping[str, Any] = (),
    algorithms: Iterable[Any] = (),
    dry_run: bool = False,
    retry_failed: bool = False,
    keep_going: bool = False,
    in_process: bool = False,
    address: str | None = None,
    max_parallel: int | None = None,
    yes: bool = False,
) -> Run | Plan:
    """Run a grid and draw its privacy-utility curves.

    Every algorithm runs on every partition, budget and seed. Interrupt it at any time: called again, it runs what its folder lacks, also
    the cells that a larger grid adds and those whose code has changed.

    Args:
        grid: a grid file (YAML); in Python also a mapping as one has it, whose paths are relative to the working folder.
        out: the run folder; default: ``runs/<name of the grid>``.
        set: replace a value of the grid, as often as needed: ``alpha=[0.3]``, ``resources.device=cpu``; in Python also a mapping.
        algorithms: more methods: names, mappings of ``name``, ``params`` and ``label``, or classes; with one that a notebook defines all
            runs in this process.
        dry_run: show cells, noise, partitions, memory and time, and run nothing.
        retry_failed: run failed cells again.
        keep_going: leave out algorithms whose plug-in is refused; exit code 1.
        in_process: run one cell after another in this process, without Ray: for debuggers and profilers.
        address: of a running Ray cluster; default: start a local one.
        max_parallel: run at most so many cells at a time.
        yes: run a grid of more than 5,000 cells.

    Returns:
        The run, whose plug-ins are trusted, since they ran here; of a dry run the plan.

    Raises:
        UserError: a mistake; nothing was written.
        KeyboardInterrupt: it was interrupted; what is finished is kept.
    """
    if in_process and address is not None:
        raise UserError("in_process", "runs nothing on a cluster", "leave out `address` or `in_process`")
    if max_parallel is not None and max_parallel < 1:
        raise UserError("max_parallel", f"must be at least 1, got {max_parallel}")
    from fedsim.grid.models import MANY_CELLS
    from fedsim.grid.read import load_grid
    from fedsim.results.store import ResultStore

    find_in_working_folder()
    checked = load_grid(grid, set, algorithms)
    if checked.most_cells > MANY_CELLS and not yes:
        hint = f"give `yes=True` to run more than {MANY_CELLS:,}, or fewer values"
        raise UserError(checked.place(), f"stands for up to {checked.most_cells:,} cells", hint)
    for name in (entry.name for entry in checked.algorithms if entry.name.startswith(NOTEBOOK)):
        if address is not None or checked.check or checked.audit:
            check_importable(name, "a cluster, checks and audits need others")
    folder = Path("runs") / checked.name if out is None else Path(out)
    if not dry_run:  # before anything that takes time
        ResultStore(folder).check_free()
    from fedsim.grid.cells import resolve
    from fedsim.plugins.code_hash import own_files
    from fedsim.runs.bench import engine_for, run_bench
    from fedsim.runs.display import preparing
    from fedsim.runs.prepare import prepare, this_machine

    console = plain_console()
    with kept_handlers(), ExitStack() as stack:
        nodes = [this_machine()]
        with preparing(plain_console(stderr=True)) as tell:
            tell(f"up to {counted(checked.most_cells, 'cell')}")
            if address is not None:
                from fedsim.runs.ray import joined_cluster

                files = {file for variant in resolve(checked, keep_going=keep_going).variants for file in own_files(variant.cls)}
                nodes = stack.enter_context(joined_cluster(address, files))
            prepared = prepare(checked, nodes, max_parallel, keep_going=keep_going, tell=tell)
        if dry_run:
            from fedsim.runs.plan_view import Plan

            return Plan(prepared, folder)
        # a cluster starts only when there is something to run on it
        prepared, engine = engine_for(prepared, address, in_process=in_process)
        code = run_bench(prepared, folder, console, engine, retry_failed=retry_failed)
    if code == INTERRUPTED:
        raise KeyboardInterrupt("what is finished is kept; the same call continues")
    return Run(folder, True, code)
