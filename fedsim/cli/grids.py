"""Commands on a grid: run it, or see what it would do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.app import Address, DryRun, GridFile, GridOption, InProcess, MaxParallel, Param, Replaced, app, folder, grid_file
from fedsim.words import plain_console, print_line, wide_console

GRIDS_PANEL = "Grids and cells"
RunOut = Annotated[Path | None, folder("The run folder; default: runs/<name of the grid>.")]


@app.command(rich_help_panel=GRIDS_PANEL)
def bench(
    file: GridFile = None,
    grid: GridOption = None,
    set_: Replaced = None,
    out: RunOut = None,
    address: Address = None,
    max_parallel: MaxParallel = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed cells again.")] = False,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Go on when a plug-in is refused; exit code 1.")] = False,
    dry_run: DryRun = False,
    in_process: InProcess = False,
) -> None:
    """Run a grid: every algorithm on every partition, budget and seed; then draw the privacy-utility curves.

    Interrupt it at any time; the same command goes on where it stopped.
    """
    from fedsim.api.grids import run_grid
    from fedsim.grid.read import load_grid

    checked = load_grid(grid_file(file, grid), set_ or [])
    code = run_grid(
        checked,
        out or Path("runs") / checked.name,
        address,
        max_parallel=max_parallel,
        retry_failed=retry_failed,
        keep_going=keep_going,
        dry_run=dry_run,
        in_process=in_process,
    )
    raise typer.Exit(code)


@app.command(rich_help_panel=GRIDS_PANEL)
def tune(
    file: GridFile = None,
    grid: GridOption = None,
    set_: Replaced = None,
    out: RunOut = None,
    address: Address = None,
    max_parallel: MaxParallel = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also run each method with the parameters of its entry, and tuned for free on test rows.")
    ] = False,
    dry_run: DryRun = False,
    in_process: InProcess = False,
) -> None:
    """Tune a grid's parameters within its budgets: ε pays for the whole search over the values of `tune` and `scan`.

    Each cell trains with a random number of settings and keeps the best one, by a noisy score on private rows that are held out.
    """
    from fedsim.api.grids import run_grid
    from fedsim.grid.read import load_grid

    checked = load_grid(grid_file(file, grid), set_ or []).tuned(compare=compare)
    to = out or Path("runs") / checked.name
    raise typer.Exit(run_grid(checked, to, address, max_parallel=max_parallel, dry_run=dry_run, in_process=in_process))


@app.command(rich_help_panel=GRIDS_PANEL)
def run(
    algorithm: Annotated[str, typer.Option(help="A registered name, my_file.py:MyMethod or pkg.module:Class.")],
    dataset: Annotated[str, typer.Option(help="As in a grid: digits, medmnist:organsmnist, csv:PATH, a YAML mapping.")] = "digits",
    public: Annotated[str | None, typer.Option(help="A data set whose rows are public, for methods that use such rows.")] = None,
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
    from fedsim.api.grids import run_grid
    from fedsim.grid.read import grid_of_options

    checked = grid_of_options(
        {
            "algorithm": algorithm,
            "dataset": dataset,
            "public": public,
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
    raise typer.Exit(run_grid(checked, out or Path("runs") / "run", address, retry_failed=True, dry_run=dry_run))


@app.command(rich_help_panel=GRIDS_PANEL)
def partition(
    file: GridFile = None,
    grid: GridOption = None,
    set_: Replaced = None,
    show: Annotated[bool, typer.Option("--show", help="Also print every label-by-client matrix, and draw the first seed's.")] = False,
    out: Annotated[Path | None, folder("The folder of the pictures; default: runs/<name of the grid>/curves.")] = None,
) -> None:
    """Show how a grid divides its data among clients, without training."""
    from fedsim.api.grids import partition as divided

    made, console = divided(grid_file(file, grid), set=set_ or []), wide_console(plain_console())
    from fedsim.report.figures import save_figure
    from fedsim.report.partitions import PARTITIONS, label_table
    from fedsim.results.folder import RunFolder

    for matrix in made.matrices if show else ():
        console.print(label_table(matrix), "")
    made.show(console)
    if show:
        for path in save_figure(made.draw(), out or RunFolder(Path("runs") / made.name).curves, PARTITIONS):
            print_line(console, f"picture: {path}")


@app.command("plan", rich_help_panel=GRIDS_PANEL)
def plan_grid(file: GridFile = None, grid: GridOption = None, set_: Replaced = None) -> None:
    """Show the noise on each statistic and gradient of every cell in units of its signal, without training."""
    from fedsim.api.grids import plan

    plan(grid_file(file, grid), set=set_ or []).show(plain_console())
