"""The report of a run folder: summary, curves and page, drawn from the files in it alone."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from fedsim.files import replaced
from fedsim.partition.matrix import LabelMatrix, read_partitions
from fedsim.report import communication, curves, diagnostics, fidelity, partitions, sites
from fedsim.report.communication import draw_communication
from fedsim.report.curves import draw_curves
from fedsim.report.diagnostics import Rounds, draw_diagnostics
from fedsim.report.differences import difference_tables
from fedsim.report.failures import KnownFailure, find_failures, summary
from fedsim.report.fidelity import draw_fidelity
from fedsim.report.figures import Drawn, drawn, save_figure
from fedsim.report.page import render_page
from fedsim.report.partitions import draw_partitions
from fedsim.report.sites import draw_sites, site_tables
from fedsim.report.tables import ResultsTable, results_tables, rich_tables
from fedsim.report.tuned import tuned_tables
from fedsim.results.folder import RunFolder
from fedsim.results.grid_rows import read_manifest, read_results
from fedsim.results.groups import Group, Spread, group_seeds
from fedsim.results.rows import Row
from fedsim.results.summary import write_summary
from fedsim.words import Printed, encodable


@dataclass(frozen=True)
class Shown:
    """What a report is drawn from: rows of the grid, the same averaged over seeds, their rounds, lines of their clients, partitions."""

    rows: list[Row]
    groups: list[Group]
    rounds: Rounds
    clients: list[dict[str, Any]]
    matrices: Sequence[LabelMatrix]


FIGURES: tuple[tuple[str, str, Callable[[Shown], Figure | None]], ...] = (
    (curves.CURVES, "Privacy-utility curves", lambda shown: draw_curves(shown.groups)),
    (diagnostics.DIAGNOSTICS, "Diagnostics of the rounds", lambda shown: draw_diagnostics(shown.rounds)),
    (communication.COMMUNICATION, "Utility against bytes", lambda shown: draw_communication(shown.groups)),
    (fidelity.FIDELITY, "Fidelity: how like real rows synthetic ones are", lambda shown: draw_fidelity(shown.groups)),
    (sites.SITES, "Clients one by one", lambda shown: draw_sites(shown.groups, shown.clients)),
    (partitions.PARTITIONS, "Who holds what", lambda shown: draw_partitions(shown.matrices)),
)
"""Name, title and drawing of every figure; None is a figure that has nothing to show."""


@dataclass(frozen=True, repr=False)
class Report(Printed):
    """What was drawn from a run folder: the page, and what a terminal shows of it; the groups are the rows averaged over seeds."""

    page: Path
    rows: list[Row]
    groups: list[Group]
    findings: list[KnownFailure]
    by_site: list[ResultsTable]

    def show(self, console: Console) -> None:
        """Print the tables of results, and the known failures that were seen."""
        console.print(rich_tables(self.groups, [*tuned_tables(self.groups), *self.by_site]))
        for line in summary(self.findings):
            console.print(line, style="yellow", highlight=False, markup=False)


@contextmanager
def without_collection() -> Iterator[None]:
    """No search for unreachable cycles in the block: records and figures are many objects that stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def draw_figures(shown: Shown, folder: Path) -> list[Drawn]:
    """Every figure of :data:`FIGURES` that has something to show, saved into ``folder``."""
    found = []
    for name, title, draw in FIGURES:
        if (figure := draw(shown)) is not None:
            _, svg = save_figure(figure, folder, name)
            found.append(drawn(figure, svg.read_text(encoding="utf-8"), name, title))
    return found


@without_collection()
def write_report(folder: Path, spread: Spread = "ci95") -> Report:
    """Write rows, summary, every figure of :data:`FIGURES` as ``curves/*.png`` and ``.svg``, and ``report.html`` into a run folder.

    Args:
        folder: a run folder. Its manifest says which cells belong to the grid and their labels; without one, those of the
            newest code and evaluation do.
        spread: what stands beside means over seeds.

    Raises:
        UserError: the folder has no results, or a file in it cannot be read.
    """
    run = RunFolder(folder)
    run.check()
    manifest = read_manifest(folder)
    results = read_results(folder)
    groups = group_seeds(rows := results.rows, spread)
    shown = Shown(rows, groups, Rounds.of(rows, results.rounds()), results.clients(), read_partitions(run.partitions))
    results.write()
    write_summary(groups, run.summary)
    figures = draw_figures(shown, run.curves)
    report = Report(run.page, rows, groups, find_failures(rows, shown.rounds), site_tables(groups, shown.clients))
    name = encodable(folder.resolve().name)
    with replaced(report.page) as part:
        part.write_text(render_page(name, rows, groups, figures, manifest, report.findings, report.by_site), encoding="utf-8")
    return report


def page_tables(folder: Path, spread: Spread = "ci95") -> list[ResultsTable]:
    """The tables of the page, those by site and of paired differences last; nothing is written.

    Raises:
        UserError: as :func:`write_report`.
    """
    RunFolder(folder).check()
    groups = group_seeds((results := read_results(folder)).rows, spread)
    return [*results_tables(groups), *tuned_tables(groups), *site_tables(groups, results.clients()), *difference_tables(groups)]
