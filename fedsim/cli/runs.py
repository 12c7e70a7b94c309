"""Commands on a run folder: its report, its rows, its generators."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedsim.cli.app import Address, MaxParallel, Run, TrustPlugin, app, interruptible
from fedsim.words import plain_console, print_line, wide_console

RUNS_PANEL = "Run folders"

Format = Literal["md", "latex"]
"""How tables are printed: GitHub Markdown, or LaTeX."""


@app.command(rich_help_panel=RUNS_PANEL)
def report(
    folder: Run,
    format_: Annotated[Format | None, typer.Option("--format", help="Print the page's tables in this format, and draw nothing.")] = None,
) -> None:
    """Draw the summary, the curves and the page of a run folder again, from the files in it alone."""
    from fedsim.api.run import load

    if format_ is not None:
        typer.echo(load(folder).tables(format_))
        return
    console, drawn = plain_console(), load(folder).report()
    drawn.show(console)
    print_line(console, f"report: {drawn.page}")


@app.command(rich_help_panel=RUNS_PANEL)
def synth(
    folder: Run,
    out: Annotated[Path, typer.Option(help="The .npz file of synthetic embeddings.")],
    cell: Annotated[str | None, typer.Option(help="The id of the cell, or its beginning, where there are several.")] = None,
    synthesis: Annotated[
        str | None, typer.Option(help="One of the algorithm's, such as neutral or mixture, or client:K; default: the cell's own.")
    ] = None,
    per_class: Annotated[int, typer.Option(min=1, help="Synthetic rows per class.")] = 200,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Seed of the draw; default: the cell's.")] = None,
    trust_plugin: TrustPlugin = False,
) -> None:
    """Draw synthetic embeddings from a saved generator; it costs no privacy."""
    from fedsim.data.arrays import check_target

    check_target(out)
    from fedsim.api.run import load

    generator = load(folder, trust_plugin=trust_plugin).generator(cell, synthesis)
    manifest = generator.save(out, per_class, seed)
    words = " ".join(f"{key} {manifest[key]}" for key in ("epsilon", "delta", "unit", "trust", "claim"))
    words += f"; not for release: {why}" if (why := generator.facts.held_back) else ""
    task = generator.facts.task
    print_line(plain_console(), f"{out}: {task.classes * per_class} synthetic embeddings of {task.dim} dimensions; {words}")
    for text in generator.warnings:
        print_line(plain_console(), f"warning: {text}", "yellow")
    if not generator.vouched:
        print_line(plain_console(), "no results of a run are here to vouch for it: all this is by the package's own word")


@app.command(rich_help_panel=RUNS_PANEL)
def release(
    folder: Run,
    out: Annotated[Path, typer.Option(help="The folder of the package: tensors, and the facts about them.")],
    cell: Annotated[str | None, typer.Option(help="The id of the cell, or its beginning, where there are several.")] = None,
    trust_plugin: TrustPlugin = False,
) -> None:
    """Write a generator that may leave the simulation under its ε (noise: secret, a claim that is proved or checked) as two files."""
    from fedsim.api.run import load

    path, facts = load(folder, trust_plugin=trust_plugin).release(out, cell)
    plan = facts.plan
    assert plan is not None
    print_line(plain_console(), f"{path}: {facts.cell.label}, ε = {plan.epsilon_target:g} at δ = {plan.delta:g}, claim {plan.claim}")


@app.command("judge", rich_help_panel=RUNS_PANEL)
def judge_run(
    folder: Run,
    address: Address = None,
    max_parallel: MaxParallel = None,
    trust_plugin: TrustPlugin = False,
) -> None:
    """Judge what a run's trainings made with today's readouts and references, without training; then draw the report.

    Interrupt it at any time; the same command goes on where it stopped.
    """
    from fedsim.api.run import load

    with interruptible(plain_console()):
        code = load(folder, trust_plugin=trust_plugin).judged(address, max_parallel)
    raise typer.Exit(code)


@app.command("compare", rich_help_panel=RUNS_PANEL)
def compare_runs(
    first: Annotated[Path, typer.Argument(metavar="RUN1", help="A run folder, such as runs/quickstart.")],
    second: Annotated[Path, typer.Argument(metavar="RUN2", help="Another with some of the same settings and seeds.")],
) -> None:
    """Compare two runs, row by row: exit code 0 if they are equal to the last bit but for wall time, 1 if something differs."""
    from fedsim.api.run import load

    compared = load(first).compare(second)
    compared.show(wide_console(plain_console()))
    raise typer.Exit(0 if compared.comparison.equal else 1)


@app.command("prove", rich_help_panel=RUNS_PANEL)
def prove_rows(
    folder: Run,
    trust_plugin: TrustPlugin = False,
) -> None:
    """Recompute every ε of a run from its rows, with dp-accounting, and every plan. Exit code 1 unless every claimed ε is proved."""
    from fedsim.api.run import load

    proofs = load(folder, trust_plugin=trust_plugin).prove()
    proofs.show(wide_console(plain_console()))
    raise typer.Exit(0 if proofs.sound else 1)


@app.command(rich_help_panel=RUNS_PANEL)
def statement(
    folder: Run,
    trust_plugin: TrustPlugin = False,
) -> None:
    """Print each method's privacy statement in words: unit, relation, trust, accountant, σ, rounds, sampling, what is not covered."""
    from fedsim.api.run import load

    for text in load(folder, trust_plugin=trust_plugin).statements():
        typer.echo("\n".join(text.lines) + "\n")


@app.command(rich_help_panel=RUNS_PANEL)
def verify(
    folder: Run,
    cells: Annotated[int, typer.Option(min=1, help="Number of finished cells, drawn at random.")] = 3,
    cell: Annotated[list[str] | None, typer.Option(help="A cell to run, by the beginning of its id, instead; repeatable.")] = None,
    trust_plugin: TrustPlugin = False,
) -> None:
    """Run some finished cells of a run again and compare: exit code 0 if rows and rounds are equal to the last bit, 1 if not."""
    from fedsim.api.run import load

    raise typer.Exit(0 if load(folder, trust_plugin=trust_plugin).verify(cells, cell or ()) else 1)
