"""Commands on budgets alone: no data, no run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.app import app, folder
from fedsim.words import plain_console, print_line, wide_console

BUDGETS_PANEL = "Budgets"


@app.command(rich_help_panel=BUDGETS_PANEL)
def account(
    epsilon: Annotated[float, typer.Option(help="ε of the budget.")],
    delta: Annotated[float, typer.Option(help="δ of the budget.")] = 1e-4,
    rounds: Annotated[int | None, typer.Option(help="Noisy steps.")] = None,
    sample_rate: Annotated[
        float | None, typer.Option(help="Poisson rate: the probability that a step samples an example; default: 1.")
    ] = None,
    unit: Annotated[str, typer.Option(help="What the budget protects: example, group or client.")] = "example",
    clients: Annotated[int | None, typer.Option(min=1, help="Number of clients, for --unit client.")] = None,
    client_rate: Annotated[
        float | None, typer.Option(help="The probability that a client takes part in a round, for --unit client.")
    ] = None,
    releases: Annotated[
        Path | None, typer.Option(help="Several releases that share the budget: a YAML list, in place of --rounds and the rates.")
    ] = None,
    out: Annotated[Path, folder("The folder of the picture and the tables.")] = Path("runs/account"),
) -> None:
    """Show what a budget buys, without data: σ, ε after each round, the price of one more, the (ε, δ) curve, the trade-off function."""
    from fedsim.api.budgets import account as accounted
    from fedsim.report.budget import write_budget

    bought = accounted(
        epsilon, delta, rounds=rounds, sample_rate=sample_rate, unit=unit, clients=clients, client_rate=client_rate, releases=releases
    )
    console = wide_console(plain_console(), 100)
    bought.show(console)
    for path in write_budget(bought.budget, out):
        print_line(console, f"wrote {path}")
