"""The report of a run folder: rows, summary, curves and page, drawn from the files in it alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console

from fedsim.evaluation.measures import MEASURES
from fedsim.files import replaced
from fedsim.partition.matrix import read_partitions
from fedsim.report import figures
from fedsim.report.figures import caption_of, save_figure
from fedsim.report.findings import Finding, findings
from fedsim.report.page import Picture, render_page
from fedsim.report.partitions import draw_partitions
from fedsim.report.rounds import NOT_PRIVATE, diagnostics, round_frame
from fedsim.report.tables import Table, inert, measures_of, results_table, site_table, tuned_table
from fedsim.results.columns import UNDRAWN, Row, frame_of_lines
from fedsim.results.run import read_manifest, read_results
from fedsim.results.stats import BUDGET, PLACE, Settings, Spread
from fedsim.results.store import RunFolder
from fedsim.words import Printed, encodable

_REFERENCES = ["ceiling_balanced_accuracy", "ceiling_accuracy", "local_only_balanced_accuracy", "chance", "seconds"]


@dataclass(frozen=True, repr=False)
class Report(Printed):
    """What was drawn from a run folder: the page, its rows, and what a terminal shows of it."""

    page: Path
    rows: list[Row]
    tables: list[Table]
    findings: list[Finding]

    def show(self, console: Console) -> None:
        """Print the tables of results and the known failures that were seen."""
        for table in self.tables:
            console.print(table)
        for finding in self.findings:
            console.print(finding.summary, style="yellow", highlight=False, markup=False)


def write_report(folder: Path, spread: Spread = "ci95") -> Report:
    """Write rows, summary, every figure as ``curves/*.svg``, the first also as PNG, and ``report.html`` into a run folder.

    Args:
        folder: a run folder. Its manifest says which cells belong to the grid, and their labels.
        spread: what stands beside means over seeds.

    Raises:
        UserError: the folder has no results, or a file in it cannot be read.
    """
    run = RunFolder(folder)
    run.check()
    manifest, results = read_manifest(folder), read_results(folder)
    settings = Settings.of(results.rows, spread)
    clients = frame_of_lines(results.clients(), results.rows)
    rounds, matrices = round_frame(settings, results.rounds()), read_partitions(run.partitions)
    results.write()
    write_summary(settings, run.summary)
    of_rows = "in the test rows' leading directions, means over classes of more than 5 test rows; real or synthetic: whole rows"
    by_client = "a dot: one client on its own test rows, the mean over seeds; above the line its own generator serves it better"
    of_rounds = f"means over seeds and places; norm before clipping: median of examples' gradients or clients' updates; {NOT_PRIVATE}"
    drawn = (
        ("privacy_utility", "Privacy against utility", caption_of(settings), figures.utility(settings)),
        ("fidelity", "Fidelity: how like real rows synthetic ones are", of_rows, figures.fidelity(settings)),
        ("sites", "Clients one by one", by_client, figures.sites(settings, clients)),
        ("partitions", "Who holds what", "exact counts of the real data: a diagnostic, not private", draw_partitions(matrices)),
        ("communication", "Utility against bytes", caption_of(settings), figures.communication(settings)),
        ("diagnostics", "Diagnostics of the rounds", of_rounds, diagnostics(settings, rounds)),
    )
    pictures = {}
    for name, title, caption, figure in drawn:
        if figure is not None:
            path = run.curves / f"{name}.{'png' if name == 'privacy_utility' else 'svg'}"
            pictures[name] = Picture(title, caption, save_figure(figure, path))
    by_site, found = site_table(settings, clients), findings(settings, rounds)
    page = render_page(encodable(folder.resolve().name), results.rows, settings, pictures, manifest, found, by_site)
    with replaced(run.page) as part:
        part.write_text(page, encoding="utf-8")
    return Report(run.page, results.rows, terminal_tables(settings, by_site), found)


def terminal_tables(settings: Settings, by_site: Table | None) -> list[Table]:
    """What a terminal shows."""
    shown = [results_table(settings, measure) for measure in measures_of(settings, terminal=True)]
    return [*shown, *filter(None, [tuned_table(settings), by_site])]


def write_summary(settings: Settings, path: Path) -> None:
    """Write ``summary.csv``, replacing the file at once: a line for every setting.

    Columns: the setting, ``seeds`` (rows averaged), how many rows are left out by status, of each measure ``_mean`` and ``_ci95``
    half-width, the largest ``epsilon_spent``, and the means of the references and seconds.
    """
    names = list(MEASURES)
    facts, means = settings.facts, settings.means(names)
    wide = means.pivot(index="setting", columns="measure", values=["mean", "half"]) if len(means) else pd.DataFrame(index=facts.index)
    scores = {f"{name}_{part}": wide.get((held, name)) for name in names for part, held in (("mean", "mean"), ("ci95", "half"))}
    summary = facts[[*PLACE[:2], "algorithm", "label", *PLACE[2:], *BUDGET, "scope", "claim", "seeds", *UNDRAWN]].copy()
    by = settings.averaged.groupby("setting")
    more = {**scores, "epsilon_spent_max": by["epsilon_spent"].max(), **{name: by[name].mean() for name in _REFERENCES}}
    with replaced(path) as part:
        inert(summary.join(pd.DataFrame(more, index=facts.index))).to_csv(part, index=False)
