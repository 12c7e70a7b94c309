"""The report of a run folder, drawn from the files in it alone.

:func:`write_report` reads the results of a run, writes every figure, and renders ``report.html``,
one self-contained page. :func:`summary_html` is what a notebook shows of a run.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from rich.console import Console

from fedsim.evaluation.measures import HELD_OUT_NOTE, MEASURES
from fedsim.files import replaced
from fedsim.json_lines import decode
from fedsim.partition.matrix import LabelMatrix, read_partitions
from fedsim.report import figures
from fedsim.report.findings import Finding, findings, round_frame
from fedsim.report.names import (
    REFERENCES,
    epsilon_head,
    most_seeds,
    run_words,
    setting_words,
)
from fedsim.report.panels import save_figure
from fedsim.report.statement import statements
from fedsim.report.table import Table, notebook_html, package_text, show_briefly
from fedsim.report.tables import (
    difference_table,
    measures_of,
    results_table,
    site_table,
    tuned_table,
)
from fedsim.report.terminal import texts_of
from fedsim.report.verdict import verdict_table
from fedsim.results.columns import UNDRAWN, Row, frame_of_lines
from fedsim.results.join import listed, published_in, read_manifest, read_results
from fedsim.results.stats import PLACE, SeedGroups, Spread
from fedsim.results.store import RunFolder
from fedsim.words import Printed, counted, encodable, number

COMPARED = ("balanced_accuracy", "client_balanced_accuracy")
"""The measures whose paired differences are shown."""
OF_MAP = (
    "Pale dots: real test examples, which must not be released. Crosses: synthetic examples. At "
    "most 30 of either are shown of a class; of more than 10 classes only the 10 with the most "
    "test examples. Axes: two principal components of the synthetic examples. Never show the real "
    "image nearest to a synthetic example: it belongs to a person, and ε does not cover it. The "
    "nearest image in a public data set is safe."
)
"""The caption of the map."""
OF_FIDELITY = (
    "Means over the classes with more than 5 test examples, in the leading directions of the test "
    "examples; the accuracy of telling synthetic from real examples uses all directions."
)
"""The caption of the figure of fidelity."""
OF_SITES = (
    "Each dot is one client on its own test examples, as the mean over seeds. Above the line the "
    "client's own generator is better for it than the shared one."
)
"""The caption of the figure of single clients."""
NOT_PRIVATE = "Computed from the real data without noise: not private, not to be released."
"""The warning beside diagnostics."""
OF_ROUNDS = (
    "Means over seeds and places. The norm before clipping is the median over the gradients of "
    f"examples or over the updates of clients. {NOT_PRIVATE}"
)
"""The caption of the diagnostics of rounds."""
_STATUSES = {
    "refuted": (
        "Refuted privacy claim",
        "An audit found a larger ε or a larger sensitivity than the method claims. No ε of this "
        "method is a guarantee. Averages and figures leave these experiments out.",
    ),
    "failed": ("Failed experiment", "Averages and figures leave these experiments out."),
    "unaccounted": (
        "Experiment with unknown ε",
        "What ran differs from what was planned. Averages and figures leave these experiments out.",
    ),
    "overspent": (
        "Experiment that spent more ε than planned",
        "Averages and figures leave these experiments out.",
    ),
}
"""The title and the text of the caution about each status, the worst status first."""
_PLACES = {"dataset": "data set", "alpha": "α", "clients": "clients"}
"""The columns of a place in the table of all cells, with their heads."""
_HEADS = {
    "seed": "seed",
    "status": "status",
    "drawn_claim": "claim",
    "epsilon_target": "ε target",
    "epsilon_spent": "ε spent",
    "mechanisms": "mechanisms",
}
"""The columns between place and scores in the table of all cells, with their heads."""
_COSTS = {
    "uplink_bytes": "uplink MB",
    "downlink_bytes": "downlink MB",
    "parameters": "parameters",
    "seconds": "seconds",
    "cell_id": "cell",
}
"""The columns behind the scores in the table of all cells, with their heads."""


class Picture(NamedTuple):
    """A figure in a page.

    Attributes:
        title: Its title.
        caption: The sentences below it.
        svg: The figure.
    """

    title: str
    caption: str
    svg: bytes

    @property
    def source(self) -> str:
        """The figure as a ``data:`` URL, so that the page loads nothing."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"

    @property
    def least_width(self) -> int:
        """The width in pixels below which its text would be too small to read."""
        width = re.search(rb'width="([\d.]+)pt"', self.svg)
        assert width is not None
        return round(float(width[1]))


class Caution(NamedTuple):
    """What a reader has to know before believing the numbers of a page.

    Attributes:
        title: One line, in plain words.
        text: What it means, and what usually helps.
        table: The settings or experiments that it is about, as HTML.
        severe: Whether a claim was refuted or an experiment failed; only that is red.
        traceback: The traceback of the first failed experiment; else empty.
    """

    title: str
    text: str
    table: Markup
    severe: bool = False
    traceback: str = ""


def render_page(
    name: str,
    rows: Sequence[Row],
    settings: SeedGroups,
    pictures: Mapping[str, Picture],
    manifest: Mapping[str, Any],
    findings: Sequence[Finding],
    by_site: Table | None,
) -> str:
    """Return the HTML of a report, which loads nothing and runs no script.

    Every text from results and manifest is escaped.

    Args:
        name: The name of the run folder.
        rows: The results, one per cell that has ended.
        settings: The same results, grouped; the results of one setting differ only in their seed.
        pictures: The figures by the names that ``page.html`` uses.
        manifest: What the run folder says of the run; may be empty.
        findings: The known failures that were seen.
        by_site: The table by site, if there is one.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    main, *more = _page_tables(settings)
    verdict = verdict_table(settings)
    grid = ""
    if "grid" in manifest:
        grid = yaml.safe_dump(
            decode(manifest["grid"]),
            sort_keys=False,
            allow_unicode=True,
        )
    return environment.from_string(package_text("page.html")).render(
        name=name,
        subtitle=_subtitle(settings.facts),
        style=Markup(package_text("page.css")),
        counts=status_counts(rows, manifest).items(),
        pictures=pictures,
        references=REFERENCES,
        cautions=list(
            _cautions(
                rows,
                manifest.get("refused") or (),
                findings,
            )
        ),
        main=Markup(main.html()),
        more=[(table.short_title, Markup(table.html())) for table in more],
        verdict=verdict and Markup(verdict.html()),
        published=settings.published,
        number=number,
        by_site=by_site and Markup(by_site.html()),
        methods=_methods(settings.facts, manifest.get("methods") or ()),
        statements=statements(rows),
        cells=_cells(settings),
        count=counted(len(rows), "result"),
        facts=[
            (key, _spelled(manifest[key]))
            for key in ("started", "command", "revision", "hardware", "versions")
            if manifest.get(key)
        ],
        grid=grid,
    )


def _cautions(
    rows: Sequence[Row], refused: Sequence[Mapping[str, str]], findings: Sequence[Finding]
) -> Iterator[Caution]:
    """Yield what a reader has to know before believing the numbers, the worst first.

    Args:
        rows: The results.
        refused: The methods whose plug-in was refused, each with ``algorithm`` and ``error``.
        findings: The known failures that were seen.
    """
    for status, (title, text) in _STATUSES.items():
        with_status = [row for row in rows if row.status == status]
        if not with_status:
            continue
        table = [
            {
                "method": row.label,
                "setting": setting_words(row.values, PLACE),
                "budget": epsilon_head(float(row.epsilon_target or "nan")),
                "seed": row.seed,
                "what happened": row.outcome,
                "cell": row.cell_id,
            }
            for row in with_status
        ]
        severe = status in ("refuted", "failed")
        traceback = ""
        if status == "failed":
            traceback = with_status[0].error["traceback"]
        yield Caution(
            f"{title}: {len(table)}", text, _plain_table(pd.DataFrame(table)), severe, traceback
        )
    if refused:
        table = [{"method": method["algorithm"], "error": method["error"]} for method in refused]
        yield Caution(
            f"Method that was left out because its plug-in was refused: {len(table)}",
            "A method whose plug-in was refused has no results.",
            _plain_table(pd.DataFrame(table)),
        )
    if any(row.has_validation for row in rows):
        yield Caution(
            "Personal scores are not private",
            HELD_OUT_NOTE,
            Markup(""),
        )
    for finding in findings:
        yield Caution(
            f"{finding.kind.name}: {counted(len(finding.table), 'setting')}",
            finding.advice,
            _plain_table(finding.table),
        )


def _plain_table(frame: pd.DataFrame) -> Markup:
    """Return a frame as an HTML table, with all texts escaped."""
    return Markup(frame.to_html(index=False, border=0, classes="cells"))


def _page_tables(settings: SeedGroups) -> list[Table]:
    """Return the tables of a page: each measure, paired differences, and chosen parameters."""
    measures = measures_of(settings)
    results = [results_table(settings, measure) for measure in measures]
    differences = [
        difference_table(settings, measure) for measure in COMPARED if measure in measures
    ]
    return [
        *results,
        *filter(
            None,
            [*differences, tuned_table(settings)],
        ),
    ]


def status_counts(rows: Sequence[Row], manifest: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of cells by how they ended.

    Args:
        rows: The results, one per cell that has ended.
        manifest: What the run folder says of the run; may be empty.

    Returns:
        The number of cells by status. ``ok`` is always there. Every other status, and
        ``not run yet``, is there only if it has a cell.
    """
    ended = Counter(row.status for row in rows)
    if "cells" in manifest:
        ended["not run yet"] = len(listed(manifest)) - len(rows)
    statuses = ("ok", *UNDRAWN, "not run yet")
    return {status: ended[status] for status in statuses if ended[status] or status == "ok"}


def summary_html(folder: Path) -> str:
    """Return what a notebook shows of a run folder, as HTML.

    That is its name and data, how its cells ended, the main table, and where the report is.

    Raises:
        UserError: The folder has no results.
    """
    run = RunFolder(folder)
    run.check()
    manifest = read_manifest(folder)
    rows = read_results(folder).rows
    settings = SeedGroups.of(rows, published=published_in(folder))
    pills = "".join(
        f'<li class="{status}">{counted(count, "cell")} {status}</li>'
        for status, count in status_counts(rows, manifest).items()
    )
    where = "There is no report yet; <code>run.report()</code> draws it."
    if run.page.exists():
        where = f"Report: <code>{escape(str(run.page))}</code>"
    parts = [
        f"<h2>{escape(encodable(folder.resolve().name))}</h2>",
        f'<p class="sub">{escape(_subtitle(settings.facts))}</p>',
        f'<ul class="counts">{pills}</ul>',
        results_table(settings).html(),
        f'<p class="where">{where}</p>',
    ]
    return notebook_html("\n".join(parts))


def _subtitle(facts: pd.DataFrame) -> str:
    """Return the line below the title: data, partition, budgets, and the number of seeds."""
    words = run_words(facts)
    seeds = most_seeds(facts)
    if seeds:
        words.append(counted(seeds, "seed"))
    return " · ".join(words)


def _methods(
    facts: pd.DataFrame, known: Sequence[Mapping[str, str]]
) -> Iterator[tuple[str, str, Markup]]:
    """Yield every method: its label, what it does, and the papers that it follows.

    Args:
        facts: :attr:`SeedGroups.facts`.
        known: What the manifest says of the labels of the grid: ``label``, ``text``, ``source``.
    """
    for label in facts["label"].unique():
        # A label may be followed by brackets with what differs between its settings.
        described = (each for each in known if f"{label} (".startswith(f"{each['label']} ("))
        method = next(described, {"text": "", "source": ""})
        yield label, method["text"], _linked(method["source"])


def _linked(source: str) -> Markup:
    """Return a citation as HTML, with links to arXiv."""
    link = r'<a href="https://arxiv.org/abs/\1">arXiv \1</a>'
    return Markup(
        re.sub(
            r"arXiv:? ?(\d{4}\.\d{4,5})",
            link,
            escape(source),
        )
    )


def _cells(settings: SeedGroups) -> Markup:
    """Return the HTML table of all cells, one line each.

    A column of the place that has the same value in all lines is left out.
    """
    rows = settings.rows
    heads = {"label": "method"}
    for name, head in _PLACES.items():
        if rows[name].nunique(dropna=False) > 1:
            heads[name] = head
    scores = {name: measure.column for name, measure in MEASURES.items() if measure.column}
    heads |= _HEADS | scores | _COSTS
    shown = rows[[*heads]].astype("object")
    shown["mechanisms"] = shown["mechanisms"].map(_mechanisms)
    shown[[*scores]] = shown[[*scores]].map(
        "{:.3f}".format,
        na_action="ignore",
    )
    shown[["uplink_bytes", "downlink_bytes"]] /= 1e6
    texts = shown.apply(lambda column: texts_of(column, 4)).rename(columns=heads)
    return _plain_table(texts)


def _mechanisms(mechanisms: Any) -> str:
    """Return the mechanisms of a cell in a few words: noise multiplier, sample rate and count.

    Args:
        mechanisms: The column ``mechanisms`` of a result; empty words if it is missing.
    """
    if not isinstance(mechanisms, list):
        return ""
    return "; ".join(
        f"{mechanism['release']} σ {number(mechanism['noise_multiplier'], 3)}, q "
        f"{number(mechanism['sample_rate'], 3)}, × {mechanism['count']}"
        for mechanism in mechanisms
    )


def _spelled(value: Any) -> str:
    """Return a value of the manifest in words, with nested values in one line."""
    if isinstance(value, Mapping):
        return " · ".join(f"{key} {_spelled(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(_spelled, value))
    return str(value)


@dataclass(frozen=True, repr=False)
class Report(Printed):
    """The report of a run folder.

    Attributes:
        page: The path of ``report.html``.
        rows: The results that it shows.
        tables: The tables that a terminal shows, the main one first.
        findings: The known failures that were seen.
    """

    page: Path
    rows: list[Row]
    tables: list[Table]
    findings: list[Finding]

    def show(self, console: Console) -> None:
        """Print the tables and the known failures that were seen."""
        show_briefly(self.tables, self.page.parent, console)
        for finding in self.findings:
            console.print(
                finding.summary,
                style="yellow",
                highlight=False,
                markup=False,
            )


def write_report(folder: Path, spread: Spread = "ci95") -> Report:
    """Write ``report.html`` into a run folder, with all figures and the joined results.

    Figures are ``curves/*.svg``; the privacy-utility curves are written as PNG, too.

    Args:
        folder: The run folder.
        spread: What is shown beside means over seeds.

    Raises:
        UserError: The folder has no results, or there is no such spread.
    """
    run = RunFolder(folder)
    run.check()
    manifest = read_manifest(folder)
    results = read_results(folder)
    settings = SeedGroups.of(results.rows, spread, published_in(folder))
    clients = frame_of_lines(results.clients(), results.rows)
    rounds = round_frame(settings, results.rounds())
    matrices = read_partitions(run.partitions)
    results.write()
    pictures = {}
    for file, title, caption, figure in _figures(settings, clients, rounds, matrices):
        path = run.curves / file
        if figure is None:
            # An earlier report may have drawn it.
            path.unlink(missing_ok=True)
            path.with_suffix(".svg").unlink(missing_ok=True)
        else:
            svg = save_figure(figure, path)
            pictures[path.stem] = Picture(title, caption, svg)
    # The bench draws the map, because only the bench has the data.
    map_path = run.curves / "map.svg"
    if map_path.exists():
        map_title = "Synthetic and real examples in two dimensions"
        pictures["map"] = Picture(
            map_title,
            OF_MAP,
            map_path.read_bytes(),
        )
    by_site = site_table(settings, clients)
    seen = findings(settings, rounds)
    name = encodable(folder.resolve().name)
    page = render_page(
        name,
        results.rows,
        settings,
        pictures,
        manifest,
        seen,
        by_site,
    )
    with replaced(run.page) as part:
        part.write_text(page, encoding="utf-8")
    return Report(
        run.page,
        results.rows,
        terminal_tables(settings, by_site),
        seen,
    )


def _figures(
    settings: SeedGroups,
    clients: pd.DataFrame,
    rounds: pd.DataFrame,
    matrices: Sequence[LabelMatrix],
) -> list[tuple[str, str, str, Figure | None]]:
    """Return the figures of a report: file name, title, caption, and figure if there is one.

    Args:
        settings: The results.
        clients: The evaluations of single clients.
        rounds: The rounds, see :func:`fedsim.report.findings.round_frame`.
        matrices: The label-by-client matrices of the partitions.
    """
    return [
        (
            "privacy_utility.png",
            "Balanced accuracy against the privacy budget",
            figures.utility_caption(settings),
            figures.utility(settings),
        ),
        (
            "fidelity.svg",
            "Fidelity: how similar synthetic and real examples are",
            OF_FIDELITY,
            figures.fidelity(settings),
        ),
        (
            "sites.svg",
            "Clients one by one",
            OF_SITES,
            figures.sites(settings, clients),
        ),
        (
            "partitions.svg",
            "Number of examples by class and client",
            NOT_PRIVATE,
            figures.partitions(matrices),
        ),
        (
            "communication.svg",
            "Balanced accuracy against communication",
            figures.caption_of(settings),
            figures.communication(settings),
        ),
        (
            "diagnostics.svg",
            "Diagnostics of the rounds",
            OF_ROUNDS,
            figures.diagnostics(settings, rounds),
        ),
    ]


def terminal_tables(settings: SeedGroups, by_site: Table | None) -> list[Table]:
    """Return the tables that a terminal shows after a bench.

    Args:
        settings: The results.
        by_site: The table by site, if there is one.
    """
    results = [results_table(settings, measure) for measure in measures_of(settings, terminal=True)]
    return [*results, *filter(None, [tuned_table(settings), by_site])]
