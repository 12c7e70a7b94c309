"""The report of a run folder: rows, curves and one self-contained page, drawn from the files in it
alone.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from rich.console import Console

from fedsim.evaluation.measures import MEASURES
from fedsim.files import replaced
from fedsim.json_lines import decode
from fedsim.partition.matrix import read_partitions
from fedsim.report import figures
from fedsim.report.figures import caption_of, save_figure
from fedsim.report.findings import Finding, findings
from fedsim.report.partitions import draw_partitions
from fedsim.report.rounds import NOT_PRIVATE, diagnostics, round_frame
from fedsim.report.statement import statements
from fedsim.report.tables import (
    Table,
    difference_table,
    measures_of,
    notebook_html,
    results_table,
    show_briefly,
    site_table,
    tuned_table,
)
from fedsim.results.columns import UNDRAWN, Row, frame_of_lines
from fedsim.results.join import listed, read_manifest, read_results
from fedsim.results.stats import SeedGroups, Spread
from fedsim.results.store import RunFolder
from fedsim.words import Printed, counted, encodable, number

COMPARED = ("balanced_accuracy", "client_balanced_accuracy")
"""Measures whose paired differences are shown."""
LISTED = 4
"""SeedGroups of one kind of failure, and missing cells of one status, that are read at once; the
others unfold.
"""
OF_MAP = (
    "pale dots: real test rows, which are not for release; crosses: synthetic rows; axes: "
    "two principal components of the synthetic rows. "
    "A synthetic row is an embedding, without an image. The real image nearest to it is "
    "somebody's, and no budget here pays for showing "
    "it; the nearest image of a public set costs nothing."
)
_PLACES = {"dataset": "data set", "alpha": "α", "clients": "clients"}
_HEADS = {
    "seed": "seed",
    "status": "status",
    "drawn_claim": "claim",
    "epsilon_target": "ε target",
    "epsilon_spent": "ε spent",
}
_HEADS |= {"mechanisms": "mechanisms"}
_COSTS = {
    "uplink_bytes": "uplink MB",
    "downlink_bytes": "downlink MB",
    "parameters": "parameters",
    "seconds": "seconds",
    "cell_id": "cell",
}


class Picture(NamedTuple):
    """A figure as it stands in a page; its ``source`` loads nothing, and its ids are its own."""

    title: str
    caption: str
    source: str


def render_page(
    name: str,
    rows: Sequence[Row],
    settings: SeedGroups,
    pictures: Mapping[str, Picture],
    manifest: Mapping[str, Any],
    findings: Sequence[Finding],
    by_site: Table | None,
) -> str:
    """The HTML of a report; every text from rows and manifest, which may be empty, is escaped, and
    it loads nothing and runs no script.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    html, style = (
        files(__package__).joinpath(file).read_text(encoding="utf-8")
        for file in ("page.html", "page.css")
    )
    counts = status_counts(rows, manifest)
    measures = measures_of(settings)
    main, *others = [results_table(settings, measure) for measure in measures]
    differences = [
        difference_table(settings, measure) for measure in COMPARED if measure in measures
    ]
    more = [table for table in [*others, *differences, tuned_table(settings)] if table is not None]
    return environment.from_string(html).render(
        name=name,
        subtitle=_subtitle(settings.facts),
        style=Markup(style),
        counts=[(status, count) for status, count in counts.items() if count or status == "ok"],
        pictures=pictures,
        findings=findings,
        missing=[
            (status, [row for row in rows if row.status == status])
            for status in UNDRAWN
            if counts[status]
        ],
        failed=next((row for row in rows if row.status == "failed"), None),
        refused=manifest.get("refused") or [],
        listed=LISTED,
        main=Markup(main.html()),
        more=[(table.title.split(" · ")[0], Markup(table.html())) for table in more],
        by_site=by_site and Markup(by_site.html()),
        methods=list(_methods(settings.facts, manifest.get("methods") or ())),
        statements=statements(rows),
        cells=_cells(settings),
        count=counted(len(rows), "row"),
        facts=[
            (key, _spelled(manifest[key]))
            for key in ("started", "command", "revision", "hardware", "versions")
            if manifest.get(key)
        ],
        grid=yaml.safe_dump(decode(manifest["grid"]), sort_keys=False, allow_unicode=True)
        if "grid" in manifest
        else "",
    )


def status_counts(rows: Sequence[Row], manifest: Mapping[str, Any]) -> dict[str, int]:
    """The number of cells by how they ended, zeros too, and of those that are not run yet."""
    counts = {status: sum(row.status == status for row in rows) for status in ("ok", *UNDRAWN)}
    cells = len(rows)
    if "cells" in manifest:
        cells = len(listed(manifest))
    return {**counts, "not run yet": max(0, cells - len(rows))}


def summary_html(folder: Path) -> str:
    """A run folder as a notebook shows it: its name and data, how its cells ended, the main table,
    and where the report is.
    """
    run = RunFolder(folder)
    run.check()
    manifest = read_manifest(folder)
    rows = read_results(folder).rows
    settings = SeedGroups.of(rows)
    pills = "".join(
        f'<li class="{status}">{counted(count, "cell")} {status}</li>'
        for status, count in status_counts(rows, manifest).items()
        if count or status == "ok"
    )
    page = escape(str(run.page))
    where = f"Report: <code>{page}</code>"
    if not run.page.exists():
        where = "There is no report yet; <code>run.report()</code> draws it."
    parts = [
        f"<h2>{escape(encodable(folder.resolve().name))}</h2>",
        f'<p class="sub">{escape(_subtitle(settings.facts))}</p>',
        f'<ul class="counts">{pills}</ul>',
        results_table(settings).html(),
        f'<p class="where">{where}</p>',
    ]
    return notebook_html("\n".join(parts))


def _subtitle(facts: pd.DataFrame) -> str:
    """Which data, divided how, under which budgets, over how many seeds."""
    heads = {
        "dataset": "{}",
        "scheme": "partition {}",
        "alpha": "α = {}",
        "clients": "{} clients",
        "epsilon_target": "ε = {}",
    }
    heads |= {"delta": "δ = {}", "unit": "unit {}", "trust": "trust {}"}
    given = {
        head: _texts(facts[column].dropna().drop_duplicates().sort_values())
        for column, head in heads.items()
    }
    parts = [head.format(", ".join(values)) for head, values in given.items() if len(values)]
    if len(facts):
        seeds = int(facts["seeds"].max())
    else:
        seeds = 0
    return " · ".join([*parts, *([counted(seeds, "seed")] if seeds else [])])


def _methods(
    facts: pd.DataFrame, known: Sequence[Mapping[str, str]]
) -> Iterator[tuple[str, str, Markup]]:
    """Every method: its label, what it is, and the papers that it follows, by what the manifest
    says of the labels of the grid.
    """
    for label in dict.fromkeys(facts["label"]):
        # what differs between settings of one label stands behind it in brackets
        said = next(
            (each for each in known if f"{label} (".startswith(f"{each['label']} (")),
            {"text": "", "source": ""},
        )
        yield label, said["text"], _linked(said["source"])


def _linked(source: str) -> Markup:
    """A citation with links to arXiv."""
    return Markup(
        re.sub(
            r"arXiv:? ?(\d{4}\.\d{4,5})",
            r'<a href="https://arxiv.org/abs/\1">arXiv \1</a>',
            escape(source),
        )
    )


def _cells(settings: SeedGroups) -> Markup:
    """A line a row, without a place that all rows share."""
    heads = {
        name: head
        for name, head in _PLACES.items()
        if settings.rows[name].nunique(dropna=False) > 1
    }
    scores = {name: measure.column for name, measure in MEASURES.items() if measure.column}
    heads = {"label": "method", **heads, **_HEADS, **scores, **_COSTS}
    shown = settings.rows[[*heads]].astype("object")
    shown["mechanisms"] = shown["mechanisms"].map(
        lambda held: "; ".join(map(_mechanism, held)) if isinstance(held, list) else ""
    )
    shown[[*scores]] = shown[[*scores]].map("{:.3f}".format, na_action="ignore")
    shown[["uplink_bytes", "downlink_bytes"]] /= 1e6
    texts = shown.apply(lambda column: _texts(column, 4)).rename(columns=heads)
    return Markup(texts.to_html(index=False, border=0, classes="cells"))


def _texts(values: pd.Series[Any], digits: int = 6) -> pd.Series[str]:
    return values.map(
        lambda value: (
            ""
            if pd.isna(value)
            else number(value, digits)
            if isinstance(value, float)
            else str(value)
        )
    )


def _mechanism(held: Mapping[str, Any]) -> str:
    """A mechanism in a few words: its noise multiplier, sample rate and count."""
    return (
        f"{held['release']} σ {number(held['noise_multiplier'], 3)}, q "
        f"{number(held['sample_rate'], 3)}, × {held['count']}"
    )


def _spelled(value: Any) -> str:
    if isinstance(value, Mapping):
        return " · ".join(f"{key} {_spelled(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(_spelled(item) for item in value)
    return str(value)


@dataclass(frozen=True, repr=False)
class Report(Printed):
    """What was drawn from a run folder: the page, its rows, and what a terminal shows of it."""

    page: Path
    rows: list[Row]
    tables: list[Table]
    findings: list[Finding]

    def show(self, console: Console) -> None:
        """Print the tables of results and the known failures that were seen."""
        show_briefly(self.tables, self.page.parent, console)
        for finding in self.findings:
            console.print(finding.summary, style="yellow", highlight=False, markup=False)


def write_report(folder: Path, spread: Spread = "ci95") -> Report:
    """Write rows, every figure as ``curves/*.svg``, the first also as PNG, and ``report.html`` into
    a run folder.
    """
    run = RunFolder(folder)
    run.check()
    manifest = read_manifest(folder)
    results = read_results(folder)
    settings = SeedGroups.of(results.rows, spread)
    clients = frame_of_lines(results.clients(), results.rows)
    rounds = round_frame(settings, results.rounds())
    matrices = read_partitions(run.partitions)
    results.write()
    of_rows = (
        "in the test rows' leading directions, means over classes of more than 5 test rows; "
        "real or synthetic: whole rows"
    )
    by_client = (
        "a dot: one client on its own test rows, the mean over seeds; above the line its own "
        "generator serves it better"
    )
    of_rounds = (
        "means over seeds and places; norm before clipping: median of examples' gradients "
        f"or clients' updates; {NOT_PRIVATE}"
    )
    drawn = (
        (
            "privacy_utility",
            "Privacy against utility",
            caption_of(settings),
            figures.utility(settings),
        ),
        (
            "fidelity",
            "Fidelity: how like real rows synthetic ones are",
            of_rows,
            figures.fidelity(settings),
        ),
        ("sites", "Clients one by one", by_client, figures.sites(settings, clients)),
        (
            "partitions",
            "Who holds what",
            "exact counts of the real data: a diagnostic, not private",
            draw_partitions(matrices),
        ),
        (
            "communication",
            "Utility against bytes",
            caption_of(settings),
            figures.communication(settings),
        ),
        ("diagnostics", "Diagnostics of the rounds", of_rounds, diagnostics(settings, rounds)),
    )
    pictures = {}
    for name, title, caption, figure in drawn:
        if figure is not None:
            drawing = save_figure(
                figure, run.curves / f"{name}.{'png' if name == 'privacy_utility' else 'svg'}"
            )
            pictures[name] = Picture(title, caption, _source(drawing))
    if (svg := run.curves / "map.svg").exists():  # drawn by the bench, which has the data
        pictures["map"] = Picture("What was generated", OF_MAP, _source(svg.read_bytes()))
    by_site = site_table(settings, clients)
    found = findings(settings, rounds)
    page = render_page(
        encodable(folder.resolve().name), results.rows, settings, pictures, manifest, found, by_site
    )
    with replaced(run.page) as part:
        part.write_text(page, encoding="utf-8")
    return Report(run.page, results.rows, terminal_tables(settings, by_site), found)


def _source(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def terminal_tables(settings: SeedGroups, by_site: Table | None) -> list[Table]:
    """What a terminal shows."""
    shown = [results_table(settings, measure) for measure in measures_of(settings, terminal=True)]
    return [*shown, *filter(None, [tuned_table(settings), by_site])]
