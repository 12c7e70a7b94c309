"""What a prepared grid is going to run, as a terminal shows it."""

from __future__ import annotations

import math

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsim.data.embeddings import untested
from fedsim.evaluation.fidelity import left_out
from fedsim.privacy.plan import large_delta
from fedsim.runs.prepare import Prepared
from fedsim.training.trial import Trial
from fedsim.words import counted, print_line, wide_console

_LEFT = ("cell", "algorithm", "data", "α", "clients", "seed", "claim", "unit, trust, scope", "accountant", "actors")


def show_plan(prepared: Prepared, console: Console) -> None:
    """Print every cell with its plan, the actor layout and the number of cells."""
    lines = [_facts(trial) for trial in prepared.trials]
    table = Table(title=f"{prepared.grid.name}: {counted(len(lines), 'cell')}", title_justify="left", show_edge=False)
    for name in lines[0]:
        # given, the width of a long column is not measured again
        width = max(cell_len(name), *(cell_len(line[name]) for line in lines))
        table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=True, width=width)
    for line in lines:
        table.add_row(*map(Text, line.values()))
    wide_console(console, 400).print(table)
    show_refused(prepared, console)
    show_warnings(prepared, console)
    sizes = ", ".join(f"{d.name}: {len(d.y_train)} × {d.dim}, {d.x_train.nbytes / 2**20:.1f} MiB" for d in prepared.data.values())
    shares = _shares(prepared)
    print_line(console, f"data: {sizes}")
    for public in public_rows_of(prepared):
        print_line(console, public)
    if prepared.repeated:
        equal = f"{prepared.repeated} of {counted(len(prepared.trials), 'cell')}"
        print_line(console, f"{equal} are equal to another by construction, whatever the partition, and are not trained again")
    print_line(
        console, f"{counted(prepared.parallel, 'cell')} at a time, {shares}; {counted(len(prepared.trials), 'cell')}; nothing was run"
    )


def public_rows_of(prepared: Prepared) -> list[str]:
    """The public rows of a grid, and which algorithms use them."""
    held = {rows.public.fingerprint: rows.public for rows in prepared.data.values() if rows.public is not None}
    users = {key: dict.fromkeys(t.cell.label for t in prepared.trials if t.cell.public_hash == key) for key in held}
    return [
        f"public data: {public.name}: {len(public.x)} × {public.x.shape[1]}, {'no labels' if public.y is None else 'labelled'}, "
        f"licence {public.licence or 'not known'}; used by {', '.join(users[key]) or 'none of these'}"
        for key, public in held.items()
    ]


def _shares(prepared: Prepared) -> str:
    """An actor's shares, and where it computes."""
    share = prepared.need
    shares = f"{counted(share.cpus, 'CPU')} and {counted(share.gpus, 'GPU')}"
    return f"{shares} an actor, on {'the GPU' if share.gpus and prepared.grid.resources.device != 'cpu' else 'the CPU'}"


def _facts(trial: Trial) -> dict[str, str]:
    """What the table says of a cell, by column."""
    cell, plan = trial.cell, trial.plan
    return {
        "cell": cell.cell_id,
        "algorithm": cell.label,
        "data": cell.dataset.display,
        "α": f"{cell.alpha:g}",
        "clients": str(cell.clients),
        "seed": str(cell.seed),
        "ε": f"{plan.epsilon_target:g}" if plan else "–",
        "σ": f"{plan.sigma:.4g}" if plan else "–",
        "q": ", ".join(f"{release.sample_rate:g}" for release in plan.releases) if plan else "–",
        "steps": ", ".join(str(release.steps) for release in plan.releases) if plan else "–",
        "ε reached": f"{plan.epsilon_reached:.4g}" if plan else "–",
        "claim": plan.claim if plan else "none",
        "unit, trust, scope": f"{cell.unit_name}, {plan.trust}, {plan.scope}" if plan else "not private",
        "accountant": plan.accountant if plan else "–",
        "actors": f"{len(trial.sizes)} × {'/'.join(map(str, sorted(set(trial.sizes), reverse=True)))} clients",
    }


def show_refused(prepared: Prepared, console: Console) -> None:
    """Print why plug-ins are left out."""
    for error in prepared.refused.values():
        print_line(console, f"left out: {error}", "red")


def show_warnings(prepared: Prepared, console: Console) -> None:
    """Print what budgets and scores of the grid do not say although they look like it, each warning once."""
    finite = (trial for trial in prepared.trials if trial.plan is not None and math.isfinite(trial.plan.epsilon_target))
    warnings = dict.fromkeys(
        large_delta(trial.cell.unit_name, trial.cell.delta, trial.units, prepared.data[trial.data_key].name) for trial in finite
    )
    views = {trial.data_key: trial.cell.evaluation.unseen for trial in prepared.trials}
    warnings |= dict.fromkeys(untested(prepared.data[key], site) for key, site in views.items())
    if "fidelity" in prepared.grid.evaluation.readouts:
        warnings |= dict.fromkeys(left_out(prepared.data[key], site) for key, site in views.items())
    for line in filter(None, warnings):
        print_line(console, f"warning: {line}", "yellow")
