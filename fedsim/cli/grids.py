"""Commands on a grid: run it, or see what it would do."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.cli.app import Address, GridFile, GridOption, MaxParallel, Param, Replaced, app, folder, grid_file, interruptible
from fedsim.errors import UserError
from fedsim.words import plain_console, print_line, wide_console

if TYPE_CHECKING:
    from fedsim.grid.models import Grid
    from fedsim.runs.engine import Engine

GRIDS_PANEL = "Grids and cells"


@app.command(rich_help_panel=GRIDS_PANEL)
def bench(
    file: GridFile = None,
    grid: GridOption = None,
    set_: Replaced = None,
    out: Annotated[Path | None, folder("The run folder; default: runs/<name of the grid>.")] = None,
    address: Address = None,
    max_parallel: MaxParallel = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed cells again.")] = False,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Leave out algorithms whose plug-in is refused; exit code 1.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show every cell and its plan; run nothing.")] = False,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Run one cell after another in this process, without Ray: for debuggers and profilers.")
    ] = False,
) -> None:
    """Run a grid: every algorithm on every partition, budget and seed; then draw the privacy-utility curves.

    Interrupt it at any time; the same command goes on where it stopped.
    """
    from fedsim.grid.read import load_grid

    checked = load_grid(grid_file(file, grid), set_ or [])
    _bench(
        checked,
        out or Path("runs") / checked.name,
        address,
        max_parallel=max_parallel,
        retry_failed=retry_failed,
        keep_going=keep_going,
        dry_run=dry_run,
        in_process=in_process,
    )


@app.command(rich_help_panel=GRIDS_PANEL)
def run(
    algorithm: Annotated[str, typer.Option(help="A registered name, my_file.py:MyMethod or pkg.module:Class.")],
    dataset: Annotated[str, typer.Option(help="As in a grid: digits, medmnist:organsmnist, csv:PATH, a YAML mapping.")] = "digits",
    encoder: Annotated[
        str | None, typer.Option(help="For images: a vision transformer of the Hugging Face hub, or a local folder.")
    ] = None,
    partition: Annotated[str, typer.Option(help="As in a grid: a scheme, or a YAML mapping.")] = "dirichlet",
    alpha: Annotated[float, typer.Option(help="Dirichlet concentration.")] = 0.3,
    clients: Annotated[int, typer.Option(help="Number of clients.")] = 10,
    epsilon: Annotated[float, typer.Option(help="ε of the budget; inf: no noise.")] = 1.0,
    delta: Annotated[float, typer.Option(help="δ of the budget.")] = 1e-4,
    unit: Annotated[str, typer.Option(help="What the budget protects: example, client or {column: PARTITIONS}.")] = "example",
    trust: Annotated[str, typer.Option(help="What an adversary sees: aggregate, the sum over clients; silo, every message.")] = "aggregate",
    seed: Annotated[int, typer.Option(help="Root of all random numbers.")] = 0,
    param: Param = None,
    per_class: Annotated[int, typer.Option(help="Synthetic rows per class.")] = 200,
    out: Annotated[Path | None, folder("The run folder; default: runs/run.")] = None,
    address: Address = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; run nothing.")] = False,
) -> None:
    """Run one cell, given by options; its generator is kept for `fedsim synth`."""
    from fedsim.grid.read import grid_of_options

    checked = grid_of_options(
        {
            "algorithm": algorithm,
            "dataset": dataset,
            "encoder": encoder,
            "partition": partition,
            "alpha": alpha,
            "clients": clients,
            "epsilon": epsilon,
            "delta": delta,
            "unit": unit,
            "trust": trust,
            "seed": seed,
            "per-class": per_class,
        },
        param or [],
    )
    _bench(checked, out or Path("runs") / "run", address, retry_failed=True, dry_run=dry_run)


def _bench(
    grid: Grid,
    folder: Path,
    address: str | None,
    *,
    max_parallel: int | None = None,
    retry_failed: bool = False,
    keep_going: bool = False,
    dry_run: bool = False,
    in_process: bool = False,
) -> None:
    """Run a grid, or show its plan; the exit code says how it went."""
    if in_process and address is not None:
        raise UserError("--in-process", "runs nothing on a cluster", "leave out --address or --in-process")
    from fedsim.results.store import ResultStore

    if not dry_run:  # before anything that takes time
        ResultStore(folder).check_free()
    from fedsim.grid.resolve import plug_in_files, resolve
    from fedsim.planning.prepare import prepare
    from fedsim.report.plan_table import show_plan
    from fedsim.runs.bench import run_bench
    from fedsim.runs.cluster import joined_cluster, this_machine
    from fedsim.runs.display import Preparing
    from fedsim.runs.engine import InProcess
    from fedsim.runs.ray_engine import connected_ray, everywhere, local_ray

    console = plain_console()
    with ExitStack() as stack:
        node = this_machine()
        with interruptible(console), Preparing(plain_console(stderr=True)) as tell:
            nodes, rehearsal = [node], None
            if address is not None:
                files = plug_in_files(variant.name for variant in resolve(grid, keep_going=keep_going).variants)
                nodes, rehearsal = stack.enter_context(joined_cluster(address, files)), everywhere
            if in_process:
                grid, max_parallel = one_by_one(grid), 1
            prepared = prepare(grid, nodes, max_parallel, keep_going=keep_going, rehearsal=rehearsal, tell=tell)
        if dry_run:
            show_plan(prepared, console)
            raise typer.Exit(1 if prepared.refused else 0)
        # A local cluster starts only when there is something to run on it.
        engine: AbstractContextManager[Engine] = connected_ray() if address is not None else local_ray(node)
        engine = nullcontext(InProcess(node)) if in_process else engine
        code = run_bench(prepared, folder, console, engine, retry_failed=retry_failed)
    raise typer.Exit(code)


def one_by_one(grid: Grid) -> Grid:
    """The grid with all clients of a cell on one actor."""
    resources = grid.resources.model_copy(update={"clients_per_actor": "all"})
    return grid.model_copy(update={"resources": resources})


@app.command(rich_help_panel=GRIDS_PANEL)
def partition(
    file: GridFile = None,
    grid: GridOption = None,
    set_: Replaced = None,
    show: Annotated[bool, typer.Option("--show", help="Also print every label-by-client matrix, and draw the first seed's.")] = False,
    out: Annotated[Path | None, folder("The folder of the pictures; default: runs/<name of the grid>/curves.")] = None,
) -> None:
    """Show how a grid divides its data among clients, without training."""
    from fedsim.grid.read import load_grid
    from fedsim.grid.resolve import resolve

    checked = resolve(load_grid(grid_file(file, grid), set_ or [])).grid
    from fedsim.planning.label_matrices import label_matrices
    from fedsim.report.figures import save_figure
    from fedsim.report.partitions import PARTITIONS, draw_partitions, label_table, summary_table
    from fedsim.results.folder import RunFolder

    matrices = label_matrices(checked)
    console = wide_console(plain_console())
    if show:
        for matrix in matrices:
            console.print(label_table(matrix), "")
    console.print(summary_table(matrices))
    figure = draw_partitions(matrices) if show else None
    if figure is not None:
        for path in save_figure(figure, out or RunFolder(Path("runs") / checked.name).curves, PARTITIONS):
            print_line(console, f"picture: {path}")


@app.command("plan", rich_help_panel=GRIDS_PANEL)
def plan_grid(file: GridFile = None, grid: GridOption = None, set_: Replaced = None) -> None:
    """Show the noise on each statistic and gradient of every cell in units of its signal, without training."""
    from fedsim.grid.read import load_grid
    from fedsim.planning.prepare import prepare
    from fedsim.report.noise_table import show_noise
    from fedsim.runs.cluster import this_machine

    checked = load_grid(grid_file(file, grid), set_ or [])
    show_noise(prepare(checked, [this_machine()]), plain_console())
