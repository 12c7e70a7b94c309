"""A budget without data, as tables and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from fedsim.files import replaced
from fedsim.report.account import DELTAS, FALSE_POSITIVES, Budget
from fedsim.report.figures import GRID_COLOUR, INK, MUTED, PAPER, SERIES, style
from fedsim.words import number

ACCOUNT = "account"
_TOLD_DELTAS, _TOLD_RATES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-8), (0.001, 0.01, 0.05, 0.1, 0.5)


def budget_words(budget: Budget) -> Iterator[str]:
    """What a budget is, line by line."""
    plan = budget.plan
    yield f"ε = {number(plan.epsilon_target)} at δ = {number(plan.delta)}, unit {plan.unit}: σ = {plan.sigma:.6g} ({plan.accountant})"
    for release in plan.releases:
        sampled = f" on Poisson samples of rate {release.sample_rate:g}" if release.sample_rate < 1 else ", every unit in each"
        times = "1 Gaussian mechanism" if release.steps == 1 else f"{release.steps} Gaussian mechanisms"
        steps = f"{times} with noise multiplier {plan.mechanism(release.name).noise_multiplier:.6g}{sampled}"
        yield f"{release.name}: {steps}; noise standard deviation = multiplier × L2 sensitivity"
    last, more = budget.rounds[-1], budget.next
    yield f"one more round of '{more.release}' with the same noise costs {more.epsilon - last.epsilon:.2g} more ε"
    yield from budget.notes


def how_computed(budget: Budget) -> Iterator[str]:
    """Where the numbers come from."""
    with_ = {
        "prv": "Opacus' PRV accountant (Gopi, Lee & Wutschitz 2021)",
        "rdp": "Rényi composition (Mironov, Talwar & Zhang 2019)",
    }
    yield f"σ: solved as a grid's, {with_[budget.plan.accountant]}, all rounds at once, before the first."
    yield (
        "ε, (ε, δ) and trade-off under add-or-remove-one: the privacy loss distribution on a grid, connect the dots (Doroshenko et al. "
        "2022), both orders of the neighbours, the worse of the two: an upper bound, tighter than the PRV's by its error bound."
    )
    yield "Valid where the noise is secret, the clip really bounds a unit, and samples are Poisson and hidden; no method is checked here."


def rounds_table(budget: Budget) -> Table:
    """Some rounds and what is spent after each."""
    table = Table(title="after round", title_justify="left", show_edge=False)
    for name in ("round", "release", "ε"):
        table.add_column(name, justify="left" if name == "release" else "right", no_wrap=True)
    for spent in (*budget.shown, budget.next):
        one_more = f"{spent.round} (one more)" if spent is budget.next else str(spent.round)
        table.add_row(one_more, spent.release, f"{spent.epsilon:.4f}")
    return table


def curve_tables(budget: Budget) -> tuple[Table, Table]:
    """Some points of the (epsilon, delta) curve and of the trade-off function."""
    curve = Table(title="all rounds: ε at other δ", title_justify="left", show_edge=False)
    for name in ("δ", "ε"):
        curve.add_column(name, justify="right", no_wrap=True)
    epsilons = budget.epsilons()
    for delta in _TOLD_DELTAS:
        at = int(np.abs(np.log(DELTAS / delta)).argmin())
        curve.add_row(number(delta), f"{epsilons[at]:.4f}")
    tradeoff = Table(title="all rounds: least false negatives of any test", title_justify="left", show_edge=False)
    for name in ("false positives", "false negatives"):
        tradeoff.add_column(name, justify="right", no_wrap=True)
    missed = budget.false_negatives()
    for rate in _TOLD_RATES:
        at = int(np.abs(FALSE_POSITIVES - rate).argmin())
        tradeoff.add_row(number(rate), f"{missed[at]:.4f}")
    return curve, tradeoff


def write_budget(budget: Budget, folder: Path) -> list[Path]:
    """Write ``account.png`` and three tables as CSV into ``folder``, each at once or not at all; their paths."""
    picture, figure = folder / f"{ACCOUNT}.png", draw_budget(budget)
    with style(), replaced(picture) as part:
        FigureCanvasAgg(figure)
        figure.savefig(part, dpi=120, format="png")
    rounds = ((s.round, s.release, s.epsilon) for s in (*budget.rounds, budget.next))
    curve, tradeoff = zip(DELTAS, budget.epsilons(), strict=True), zip(FALSE_POSITIVES, budget.false_negatives(), strict=True)
    return [
        picture,
        _csv(folder / "rounds.csv", ("round", "release", "epsilon"), rounds),
        _csv(folder / "curve.csv", ("delta", "epsilon"), curve),
        _csv(folder / "tradeoff.csv", ("false_positives", "false_negatives"), tradeoff),
    ]


def draw_budget(budget: Budget) -> Figure:
    """Epsilon over the rounds, the (epsilon, delta) curve, the trade-off function."""
    plan = budget.plan
    with style():
        figure = Figure(figsize=(11, 3.7), facecolor=PAPER)
        places = {"left": 0.055, "right": 0.985, "top": 0.9, "bottom": 0.14, "wspace": 0.24}
        rounds, curve, tradeoff = figure.subplots(1, 3, gridspec_kw=places)
        rounds.plot([s.round for s in budget.rounds], [s.epsilon for s in budget.rounds], color=SERIES[0])
        rounds.set(xlabel="round", ylabel=f"ε spent at δ = {number(plan.delta)}", ylim=(0, None), xlim=(0, None))
        curve.plot(budget.epsilons(), DELTAS, color=SERIES[0])
        curve.axhline(plan.delta, color=MUTED, linewidth=0.8, linestyle=":")
        curve.annotate(
            f"δ = {number(plan.delta)}", (0.98, plan.delta), xycoords=curve.get_yaxis_transform(), ha="right", va="bottom", color=MUTED
        )
        curve.set(xlabel="ε", ylabel="δ", yscale="log", xlim=(0, None))
        tradeoff.plot(FALSE_POSITIVES, budget.false_negatives(), color=SERIES[0])
        tradeoff.plot([0, 1], [1, 0], color=MUTED, linewidth=0.8, linestyle=":")
        tradeoff.annotate("a coin", (0.5, 0.5), xytext=(3, 3), textcoords="offset points", color=MUTED)
        tradeoff.set(xlabel="false positives of an attack", ylabel="its false negatives, at least", xlim=(0, 1), ylim=(0, 1))
        titles = ("Spent after each round", "After all rounds: (ε, δ)", "After all rounds: trade-off")
        for axes, title in zip((rounds, curve, tradeoff), titles, strict=True):
            _dress(axes, title)
    return figure


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.grid(color=GRID_COLOUR, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=MUTED, labelcolor=INK)


def _csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    with replaced(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path
