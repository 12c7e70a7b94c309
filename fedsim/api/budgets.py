"""Budgets without data: what one buys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.errors import at
from fedsim.words import Printed, plain_console

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from rich.console import Console

    from fedsim.report.account import Budget


@dataclass(frozen=True, repr=False)
class Account(Printed):
    """What a budget buys: the noise, what is spent after every round, and what an adversary can then tell."""

    budget: Budget

    @property
    def sigma(self) -> float:
        """The noise multiplier of a release of relative noise 1."""
        return self.budget.plan.sigma

    @property
    def rounds(self) -> pd.DataFrame:
        """ε after every round, and after one more."""
        import pandas as pd

        return pd.DataFrame([vars(spent) for spent in (*self.budget.rounds, self.budget.next)])

    def draw(self) -> Figure:
        """ε over the rounds, the (ε, δ) curve and the trade-off function."""
        from fedsim.report.budget import draw_budget

        return draw_budget(self.budget)

    def show(self, console: Console) -> None:
        """Print it in words and tables."""
        from fedsim.report.budget import budget_words, curve_tables, how_computed, rounds_table

        for line in budget_words(self.budget):
            console.print(line, highlight=False, markup=False)
        for table in (rounds_table(self.budget), *curve_tables(self.budget)):
            console.print("", table)
        console.print("")
        for line in how_computed(self.budget):
            console.print(line, style="dim", highlight=False, markup=False)


def account(
    epsilon: float,
    delta: float = 1e-4,
    *,
    rounds: int | None = None,
    sample_rate: float | None = None,
    unit: str = "example",
    clients: int | None = None,
    client_rate: float | None = None,
    releases: Path | str | Sequence[Mapping[str, Any]] | None = None,
) -> Account:
    """What a budget buys, without data: σ, ε after each round, the price of one more, the (ε, δ) curve, the trade-off function.

    Args:
        epsilon: of the budget.
        delta: of the budget.
        rounds: noisy steps.
        sample_rate: the probability that a step samples an example; default: 1.
        unit: what the budget protects: example, group or client.
        clients: how many, for the unit client.
        client_rate: the probability that a client takes part in a round, for the unit client.
        releases: several releases that share the budget, in place of ``rounds`` and the rates: a YAML file, or the list that one has.

    Raises:
        UserError: a value does not do, or no noise reaches the target.
    """
    from fedsim.report.account import account as accounted
    from fedsim.report.account import settings
    from fedsim.runs.display import Preparing

    described, checked, notes = settings(
        rounds=rounds, sample_rate=sample_rate, unit=unit, clients=clients, client_rate=client_rate, delta=delta, releases=releases
    )
    with at(lambda where: f"--{where}" if where in ("epsilon", "delta") else where), Preparing(plain_console(stderr=True)) as tell:
        return Account(accounted(epsilon, delta, described, unit=checked, notes=notes, tell=tell))
