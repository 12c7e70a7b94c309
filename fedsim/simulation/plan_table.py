"""What a prepared grid is going to run, as a terminal shows it."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from fedsim.privacy.plan import large_delta
from fedsim.simulation.preflight import Prepared
from fedsim.words import wide_console


def show_plan(prepared: Prepared, console: Console) -> None:
    """Print every cell with its plan, the actor layout and the number of cells."""
    table = Table(title=f"{prepared.grid.name}: {len(prepared.trials)} cells", title_justify="left", show_edge=False)
    for name in ("cell", "algorithm", "data", "α", "clients", "seed"):
        table.add_column(name, no_wrap=True)
    for name in ("ε", "σ", "q", "steps", "ε reached"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("claim", "unit, trust, scope", "accountant", "actors"):
        table.add_column(name, no_wrap=True)
    for trial in prepared.trials:
        cell, plan = trial.cell, trial.plan
        facts = [cell.cell_id, cell.label, cell.dataset.display, f"{cell.alpha:g}", str(cell.clients), str(cell.seed)]
        actors = f"{len(trial.sizes)} × {'/'.join(map(str, sorted(set(trial.sizes), reverse=True)))} clients"
        if plan is None:
            table.add_row(*facts, "–", "–", "–", "–", "–", "none", "not private", "–", actors)
            continue
        budget = [
            f"{plan.epsilon_target:g}",
            f"{plan.sigma:.4g}",
            ", ".join(f"{release.sample_rate:g}" for release in plan.releases),
            ", ".join(str(release.steps) for release in plan.releases),
            f"{plan.epsilon_reached:.4g}",
        ]
        table.add_row(*facts, *budget, plan.claim, f"{plan.unit}, {plan.trust}, {plan.scope}", plan.accountant, actors)
    wide_console(console, 400).print(table)
    show_refused(prepared, console)
    show_warnings(prepared, console)
    sizes = ", ".join(f"{d.name}: {len(d.y_train)} × {d.dim}, {d.x_train.nbytes / 2**20:.1f} MiB" for d in prepared.data.values())
    shares = _shares(prepared)
    console.print(f"data: {sizes}", soft_wrap=True, highlight=False)
    console.print(
        f"{prepared.parallel} cells at a time, {shares}; {len(prepared.trials)} cells; nothing was run",
        soft_wrap=True,
        highlight=False,
    )


def _shares(prepared: Prepared) -> str:
    """An actor's shares, and where it computes."""
    asked, share = prepared.grid.resources, prepared.share
    measured = "as much of a GPU as a first round is measured to need"
    gpus = measured if asked.gpus_per_actor == "auto" else f"{share.gpus:g} GPUs"
    return f"{share.cpus:g} CPUs and {gpus} an actor, on {'the GPU' if share.gpus and share.device != 'cpu' else 'the CPU'}"


def show_refused(prepared: Prepared, console: Console) -> None:
    """Print why plug-ins are left out."""
    for error in prepared.refused.values():
        console.print(f"left out: {error}", style="red", soft_wrap=True, highlight=False, markup=False)


def show_warnings(prepared: Prepared, console: Console) -> None:
    """Print what a budget of the grid does not promise although it looks like it, each thing once."""
    plans = ((trial.plan, trial.train_rows, prepared.data[trial.data_key].name) for trial in prepared.trials)
    finite = ((plan, rows, name) for plan, rows, name in plans if plan is not None and math.isfinite(plan.epsilon_target))
    told = dict.fromkeys(large_delta(plan.unit, plan.delta, rows, name) for plan, rows, name in finite)
    for line in filter(None, told):
        console.print(f"warning: {line}", style="yellow", soft_wrap=True, highlight=False, markup=False)
