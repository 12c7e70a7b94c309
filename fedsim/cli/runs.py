"""Commands on a run folder: its report, its rows, its generators."""

from __future__ import annotations

from contextlib import ExitStack
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
    from fedsim.report.report import page_tables, write_report

    if format_ is not None:
        from fedsim.report.typeset import typeset

        typer.echo(typeset(page_tables(folder), format_))
        return
    console, drawn = plain_console(), write_report(folder)
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
    from fedsim.data.encoding.archive import check_target, write_npz, write_sidecar

    check_target(out)
    import numpy as np

    from fedsim.results.generators import load_generator

    generator = load_generator(folder, cell, synthesis, trust_plugin=trust_plugin)
    x, y = generator.synthesise(per_class, seed)
    manifest = generator.manifest(per_class, seed)
    names = {"class_names": np.array(manifest["class_names"])} if manifest["class_names"] else {}
    write_npz(out, (len(x), x.shape[1]), "float32", [x], {"y": y, **names}, manifest)
    write_sidecar(out, manifest)
    words = " ".join(f"{key} {manifest[key]}" for key in ("epsilon", "delta", "unit", "trust", "claim"))
    words += f"; not for release: {why}" if (why := generator.facts.held_back) else ""
    print_line(plain_console(), f"{out}: {len(x)} synthetic embeddings of {x.shape[1]} dimensions; {words}")
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
    from fedsim.results.generators import release as write_package

    path, facts = write_package(folder, cell, out, trust_plugin=trust_plugin)
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
    from fedsim.grid.resolve import plug_in_files
    from fedsim.runs.bench import algorithms_of, run_judging
    from fedsim.runs.cluster import joined_cluster, this_machine
    from fedsim.runs.ray_engine import connected_ray, local_ray

    console = plain_console()
    with ExitStack() as stack:
        node = this_machine()
        files = plug_in_files(algorithms_of(folder)) if address is not None and trust_plugin else ()
        nodes = [node] if address is None else stack.enter_context(joined_cluster(address, files))
        with interruptible(console):
            engine = local_ray(node) if address is None else connected_ray()
            code = run_judging(folder, nodes, console, engine, max_parallel, trust_plugin=trust_plugin)
    raise typer.Exit(code)


@app.command("compare", rich_help_panel=RUNS_PANEL)
def compare_runs(
    first: Annotated[Path, typer.Argument(metavar="RUN1", help="A run folder, such as runs/quickstart.")],
    second: Annotated[Path, typer.Argument(metavar="RUN2", help="Another with some of the same settings and seeds.")],
) -> None:
    """Compare two runs, row by row: exit code 0 if they are equal to the last bit but for wall time, 1 if something differs."""
    from fedsim.report.comparison import compare_folders

    compared = compare_folders(first, second)
    compared.show(wide_console(plain_console()))
    raise typer.Exit(0 if compared.comparison.equal else 1)


@app.command("prove", rich_help_panel=RUNS_PANEL)
def prove_rows(
    folder: Run,
    trust_plugin: TrustPlugin = False,
) -> None:
    """Recompute every ε of a run from its rows, with dp-accounting, and every plan. Exit code 1 unless every claimed ε is proved."""
    from fedsim.evidence.prove import apart_words, proofs_table, proofs_words, prove, together, together_words
    from fedsim.results.contradictions import large_deltas
    from fedsim.results.folder import RunFolder
    from fedsim.results.grid_rows import every_row

    RunFolder(folder).check()
    proofs = [prove(row, trust_plugin=trust_plugin) for row in every_row(folder)]
    console = wide_console(plain_console())
    console.print(proofs_table(folder.resolve().name, proofs))
    sound = [proof.row for proof in proofs if proof.verdict == "proved"]
    for line in (proofs_words(proofs), *together_words(together(sound)), *apart_words(sound)):
        console.print(line, highlight=False, markup=False)
    for text in large_deltas([proof.row for proof in proofs]):
        print_line(console, f"warning: {text}", "yellow")
    raise typer.Exit(1 if any(proof.verdict in ("differs", "not proved") for proof in proofs) else 0)


@app.command(rich_help_panel=RUNS_PANEL)
def statement(
    folder: Run,
    trust_plugin: TrustPlugin = False,
) -> None:
    """Print each method's privacy statement in words: unit, relation, trust, accountant, σ, rounds, sampling, what is not covered."""
    from fedsim.report.statement import statements
    from fedsim.results.contradictions import cross_check
    from fedsim.results.folder import RunFolder
    from fedsim.results.grid_rows import grid_rows

    RunFolder(folder).check()
    for text in statements(grid_rows(folder), lambda row: cross_check(row, trust_plugin=trust_plugin)):
        typer.echo("\n".join(text.lines) + "\n")


@app.command(rich_help_panel=RUNS_PANEL)
def verify(
    folder: Run,
    cells: Annotated[int, typer.Option(min=1, help="Number of finished cells, drawn at random.")] = 3,
    cell: Annotated[list[str] | None, typer.Option(help="A cell to run, by the beginning of its id, instead; repeatable.")] = None,
    trust_plugin: TrustPlugin = False,
) -> None:
    """Run some finished cells of a run again and compare: exit code 0 if rows and rounds are equal to the last bit, 1 if not."""
    from fedsim.planning.prepare import prepare
    from fedsim.runs.cluster import this_machine
    from fedsim.runs.ray_engine import local_ray
    from fedsim.runs.verify import Verification

    console, node = wide_console(plain_console()), this_machine()
    verification = Verification.of(folder, lambda grid: prepare(grid, [node]), trust_plugin=trust_plugin)
    equal = verification.run(cells, console, local_ray(node), cell or ())
    raise typer.Exit(0 if equal else 1)
