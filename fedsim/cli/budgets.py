"""Commands on budgets alone: no data, no run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.app import app, folder
from fedsim.errors import at
from fedsim.words import plain_console, print_line, wide_console

PANEL = "Budgets"


@app.command(rich_help_panel=PANEL)
def account(
    epsilon: Annotated[float, typer.Option(help="The budget.")],
    delta: Annotated[float, typer.Option(help="Of the budget.")] = 1e-4,
    rounds: Annotated[int | None, typer.Option(help="Noisy steps.")] = None,
    sample_rate: Annotated[float | None, typer.Option(help="The probability with which an example is in a step; default: 1.")] = None,
    unit: Annotated[str, typer.Option(help="What the budget protects: example or client.")] = "example",
    clients: Annotated[int | None, typer.Option(min=1, help="How many there are, for --unit client.")] = None,
    client_rate: Annotated[float | None, typer.Option(help="The probability with which a client takes part; for --unit client.")] = None,
    releases: Annotated[Path | None, typer.Option(help="Several kinds of release: a YAML list, in place of --rounds and the rate.")] = None,
    out: Annotated[Path, folder("The folder of the picture and the tables.")] = Path("runs/account"),
) -> None:
    """What a budget buys, without data: σ, ε after each round, the price of one more, the (ε, δ) curve, what an adversary can tell."""
    from fedsim.proof.budget import account as accounted
    from fedsim.proof.budget import settings
    from fedsim.report.budget import budget_words, curve_tables, how_computed, rounds_table, write_budget
    from fedsim.runtime.display import Preparing

    described, checked, notes = settings(
        rounds=rounds, sample_rate=sample_rate, unit=unit, clients=clients, client_rate=client_rate, delta=delta, releases=releases
    )
    with at(lambda where: f"--{where}" if where in ("epsilon", "delta") else where), Preparing(plain_console(stderr=True)) as tell:
        budget = accounted(epsilon, delta, described, unit=checked, notes=notes, tell=tell)
    console = wide_console(plain_console(), 100)
    for line in budget_words(budget):
        console.print(line, highlight=False, markup=False)
    for table in (rounds_table(budget), *curve_tables(budget)):
        console.print("", table)
    console.print("")
    for line in how_computed(budget):
        console.print(line, style="dim", highlight=False, markup=False)
    for path in write_budget(budget, out):
        print_line(console, f"wrote {path}")


@app.command("diagnose", rich_help_panel=PANEL)
def diagnose_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A tool's settings (YAML), such as benchmarks/accounting/dp_cvae.yaml.")],
) -> None:
    """What another tool's noise is worth by unit and trust, from its settings, or why there is no ε."""
    from fedsim.proof.diagnose import diagnosis, read_settings

    for line in diagnosis(read_settings(file)):
        typer.echo(line)
