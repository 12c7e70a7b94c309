"""Commands on a run folder: its report, its rows, its generators."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fedsim.cli.app import Address, MaxParallel, Run, TrustPlugin, app, interruptible
from fedsim.cli.app import folder as file_folder
from fedsim.errors import UserError
from fedsim.words import counted, plain_console, print_line, wide_console

RUNS_PANEL = "Run folders"

TableFormat = Literal["md", "latex", "html", "csv"]
"""How tables are printed: GitHub Markdown, LaTeX with booktabs and siunitx, HTML, or a line a number."""
Order = Literal["given", "best", "name"]
"""Of the methods in a table or figure."""
Spread = Literal["ci95", "sd", "range"]
"""What stands beside means over seeds."""


@app.command(rich_help_panel=RUNS_PANEL)
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="A run folder, or several whose rows are shown together.")],
    format_: Annotated[
        TableFormat | None, typer.Option("--format", help="Print tables, and draw nothing: the page's, or one that is chosen.")
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(help="One table: results; differences, paired by seed; private, private methods minus those without noise; sites."),
    ] = None,
    measure: Annotated[
        str | None, typer.Option(help="A score of a row, such as knn_balanced_accuracy; default: balanced_accuracy.")
    ] = None,
    methods: Annotated[list[str] | None, typer.Option(help="Labels or patterns, with commas or repeated: 'fedhypevae*,dp-gmm'.")] = None,
    order: Annotated[Order, typer.Option(help="Of methods: as given here or in the grid, best first, or by name.")] = "given",
    digits: Annotated[int | None, typer.Option(min=0, max=6, help="Behind the decimal point; default: 3.")] = None,
    pair: Annotated[tuple[str, str] | None, typer.Option(help="Two labels: paired tests of the first minus the second.")] = None,
    figure: Annotated[Path | None, typer.Option(metavar="PDF", help="Draw one figure into this file, its text as text.")] = None,
    over: Annotated[str | None, typer.Option(help="The figure's x axis: epsilon (default), a scanned parameter, bytes or seconds.")] = None,
    spread: Annotated[
        Spread, typer.Option(help="What stands beside means over seeds: 95 % confidence interval, standard deviation, or least to most.")
    ] = "ci95",
    width: Annotated[str | None, typer.Option(help="Of the figure: column (8.5 cm, default), page (17.8 cm), or inches.")] = None,
) -> None:
    """Draw the page of a run folder again, from the files in it alone; or print one table, or draw one figure, for a paper."""
    from fedsim.api.run import load
    from fedsim.report.tables import TerminalTable
    from fedsim.report.typeset import typeset

    first, *beside = map(load, folders)
    chosen: dict[str, Any] = {"measure": measure or "balanced_accuracy", "methods": methods, "order": order}
    chosen |= {"beside": [run.folder for run in beside], "spread": spread}
    of_figures, of_tables = {"over": over, "width": width}, {"format": format_, "table": table, "digits": digits, "pair": pair}
    for name, given in (of_figures if figure is None else of_tables).items():
        if given is not None:
            raise UserError(
                f"--{name}", f"is for {'figures' if figure is None else 'tables'}", f"{'give' if figure is None else 'leave out'} --figure"
            )
    if figure is not None:
        from fedsim.report.figures import inches, save_pdf

        if figure.suffix != ".pdf":
            raise UserError(f"--figure {figure}", "is not a .pdf file", f"give {figure.with_suffix('.pdf')}")
        drawn_figure = first.curves(**chosen, over=over or "epsilon", width=inches(width or "column"))
        print_line(plain_console(), f"figure: {save_pdf(drawn_figure, figure)}")
    elif beside or format_ == "csv" or methods or order != "given" or any(given is not None for given in (table, measure, digits, pair)):
        shown = first.chosen(**chosen, table=table or "results", pair=pair, digits=3 if digits is None else digits)
        if format_ is None:
            plain_console().print(TerminalTable(shown))
        else:
            typer.echo(typeset([shown], format_))
    elif format_ is not None:
        typer.echo(first.tables(format_, spread))
    else:
        console, drawn = plain_console(), first.report(spread)
        drawn.show(console)
        print_line(console, f"report: {drawn.page}")


@app.command(rich_help_panel=RUNS_PANEL)
def synth(
    folder: Run,
    out: Annotated[Path, typer.Option(help="The file of synthetic embeddings; with --format hf the folder, new or empty.")],
    format_: Annotated[
        Literal["npz", "parquet", "hf"],
        typer.Option("--format", help="npz; parquet; or hf, a folder for the Hugging Face hub with card and Croissant, to be released."),
    ] = "npz",
    repository: Annotated[
        str | None,
        typer.Option("--repo", metavar="OWNER/NAME", help="With --format hf: where on the hub; default: the folder's name."),
    ] = None,
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

    if format_ == "npz":
        check_target(out)
    elif format_ == "parquet" and out.suffix != ".parquet":
        raise UserError(f"--out {out}", "is not a .parquet file", f"give {out.with_suffix('.parquet')}")
    if repository is not None and format_ != "hf":
        raise UserError("--repo", f"means nothing for --format {format_}", "leave it out, or give --format hf")
    from fedsim.api.run import load

    run = load(folder, trust_plugin=trust_plugin)
    generator = run.generator(cell, synthesis)
    manifest = run.hub_folder(generator, out, per_class, seed, repository) if format_ == "hf" else generator.save(out, per_class, seed)
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
    """Write a generator that may leave the simulation under its ε (noise: secret; proved, or stated and checked) as two files."""
    from fedsim.api.run import load

    path, facts = load(folder, trust_plugin=trust_plugin).release(out, cell)
    plan = facts.plan
    assert plan is not None
    print_line(plain_console(), f"{path}: {facts.cell.label}, ε = {plan.epsilon_target:g} at δ = {plan.delta:g}, claim {plan.claim}")


@app.command(rich_help_panel=RUNS_PANEL)
def export(
    folder: Run,
    to: Annotated[Literal["mlflow", "tensorboard", "wandb"], typer.Option(help="The tool, which must be installed.")],
    out: Annotated[Path | None, file_folder("A new or empty folder; default: tracking/TOOL in the run folder.")] = None,
) -> None:
    """Write a run's cells for an experiment tracker, a run of its for each: settings, scores, budget, rounds. Nothing is sent anywhere."""
    from fedsim.api.run import load
    from fedsim.report.tracking import NOT_PRIVATE

    path, count = load(folder).export(to, out)
    print_line(plain_console(), f"{path}: {counted(count, 'cell')} for {to}; {NOT_PRIVATE}")


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


@app.command("board", rich_help_panel=RUNS_PANEL)
def show_board(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, whose rows stand in one table.")],
    format_: Annotated[
        Literal["md", "html", "csv"] | None,
        typer.Option("--format", help="GitHub Markdown, HTML, or CSV with a line a method and budget; default: as --out ends."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; default: print.")] = None,
    trust_plugin: TrustPlugin = False,
) -> None:
    """Print one table over many runs, of rows whose ε is proved again: budget, score, claim, audit, tuning, public data."""
    from fedsim.api.run import board

    made = board(folders, trust_plugin=trust_plugin)
    if out is not None and format_ is None and out.suffix not in (".md", ".html", ".csv"):
        raise UserError(f"--out {out}", "does not say the format", "give --format, or a file that ends in .md, .html or .csv")
    as_: Any = format_ or (out and out.suffix[1:])
    if out is not None:
        made.save(out, as_, plain_console())
    elif as_ is not None:
        typer.echo(made.text(as_))
    else:
        made.show(plain_console())


@app.command(rich_help_panel=RUNS_PANEL)
def statement(
    folder: Run,
    cell: Annotated[str | None, typer.Option(help="The id of the one cell to state, or its beginning.")] = None,
    format_: Annotated[Literal["text", "latex"], typer.Option("--format", help="Plain text, or LaTeX for an appendix.")] = "text",
    trust_plugin: TrustPlugin = False,
) -> None:
    """Print each method's privacy statement in words: unit, relation, trust, accountant, σ, rounds, sampling, what is not covered."""
    from fedsim.api.run import load
    from fedsim.report.typeset import typeset_statement

    run = load(folder, trust_plugin=trust_plugin)
    for text in run.statements() if cell is None else [run.statement(cell)]:
        typer.echo((typeset_statement(text) if format_ == "latex" else "\n".join(text.lines)) + "\n")


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
