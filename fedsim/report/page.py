"""The page: one self-contained HTML file with the curves, the tables, what failed, and what the privacy numbers mean."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from fedsim.evaluation.measures import MEASURES
from fedsim.json_lines import decode
from fedsim.report import communication, curves, diagnostics, fidelity, partitions, sites
from fedsim.report.diagnostics import DIAGNOSTICS_NOT_PRIVATE
from fedsim.report.differences import COMPARED, difference_table
from fedsim.report.failures import HELP, MEANING, KnownFailure, by_kind
from fedsim.report.figures import HEAT, SERIES, SHADES, Drawn
from fedsim.report.statement import CLAIMS, NOISES, TRUSTS, statements, unit_words
from fedsim.report.tables import SHORT_TITLES, TOO_FEW, ResultsTable, claim, results_table, shown_measures
from fedsim.report.tuned import tuned_tables
from fedsim.results.groups import Group, grouped
from fedsim.results.rows import UNDRAWN, Row, large_deltas
from fedsim.words import counted, number


def render_page(
    name: str,
    rows: Sequence[Row],
    groups: Sequence[Group],
    drawn: Sequence[Drawn],
    manifest: Mapping[str, Any],
    findings: Sequence[KnownFailure] = (),
    by_site: Sequence[ResultsTable] = (),
) -> str:
    """The HTML of a report.

    Every text from rows and manifest is escaped; the page loads nothing and runs no script.

    Args:
        name: the grid's name.
        rows: the rows of the grid.
        groups: the same rows as ``group_seeds`` gives them.
        drawn: the figures; those that the page has no place for stand in sections of their own, in their order.
        manifest: the run's manifest; may be empty.
        findings: the known failures that were seen.
        by_site: the tables by site.
    """
    counts = {status: sum(row.status == status for row in rows) for status in ("ok", *UNDRAWN)}
    counts["not run yet"] = max(0, len(manifest.get("cells") or rows) - len(rows))
    columns = _columns(rows)
    cells = [(column.look, column.text) for column in columns]
    measures = [_Shown(SHORT_TITLES.get(measure, MEASURES[measure].title), *_tables(groups, measure)) for measure in shown_measures(groups)]
    return _template("page.html").render(
        name=name,
        subtitle=_subtitle(groups),
        figures={figure.name: figure for figure in drawn},
        others=[figure for figure in drawn if figure.name not in _PLACED],
        by_site=by_site,
        tuned=tuned_tables(groups),
        too_few=TOO_FEW if any(_lacks_bars(group) for group in groups) else "",
        findings=by_kind(findings),
        known=list(HELP),
        help=HELP,
        meaning=MEANING,
        not_private=DIAGNOSTICS_NOT_PRIVATE,
        listed=_LISTED,
        style=Markup(_template("page.css").render(series=SERIES, shades=SHADES, heat=HEAT)),
        counts=[(status, count) for status, count in counts.items() if count or status == "ok"],
        measures=measures,
        notes=[note for note in measures[0].table.notes if all(note in shown.table.notes for shown in measures)],
        number=number,
        privacy=_privacy(groups, rows),
        methods=_methods(groups, manifest.get("methods") or ()),
        statements=statements(rows),
        columns=columns,
        rows=rows,
        lines=[(row.status, [(look, text(row)) for look, text in cells]) for row in rows],
        missing={status: [row for row in rows if row.status == status] for status in UNDRAWN},
        undrawn=UNDRAWN,
        refused=manifest.get("refused") or [],
        facts=_facts(manifest, rows),
        grid=yaml.safe_dump(decode(manifest["grid"]), sort_keys=False, allow_unicode=True) if "grid" in manifest else "",
    )


def _template(name: str) -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _privacy(groups: Sequence[Group], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What the epsilons of the page are about, each fact once."""
    private = [group for group in groups if group.epsilon_target is not None]
    spent = [row for row in rows if row.epsilon_target is not None and math.isfinite(row.epsilon_target)]
    units = dict.fromkeys(group.unit for group in private if group.unit)
    trusts = dict.fromkeys(group.trust for group in private if group.trust)
    deltas = dict.fromkeys(number(group.delta) for group in private if group.delta is not None)
    accountants = dict.fromkeys(row.accountant for row in spent if row.accountant)
    noises = dict.fromkeys(row.noise or "seeded" for row in spent)
    return [
        *(("unit", f"{unit}, that is {unit_words(unit)}") for unit in units),
        *(("trust", f"{trust}, that is {TRUSTS[trust]}") for trust in trusts),
        *([("δ", ", ".join(deltas))] if deltas else []),
        *(("noise", f"{noise}: {NOISES[noise]}") for noise in noises),
        *(("warning", text) for text in large_deltas(spent)),
        *([("accountant", ", ".join(name.upper() for name in accountants))] if accountants else []),
    ]


_NO_CLAIMS = {
    "not private": "no noise is added and ε has no meaning",
    "refuted": "(ε, δ) is claimed, and an audit refutes it at one budget or more",
}


@dataclass(frozen=True)
class _Described:
    """A method for readers who did not run it: what it is, the papers that it follows, its claim, and what that means."""

    label: str
    text: str
    source: Markup
    claim: str
    words: str


def _methods(groups: Sequence[Group], known: Sequence[Mapping[str, str]]) -> list[_Described]:
    """Every method; ``known`` is what the manifest says of them, by the labels of the grid."""
    methods = []
    for label, members in grouped(groups, lambda group: group.label).items():
        name = claim(members)
        scopes = dict.fromkeys(group.scope for group in members if group.scope)
        # what differs between settings of one label stands behind it in brackets
        said = next(
            (each for each in known if label == each["label"] or label.startswith(f"{each['label']} (")), {"text": "", "source": ""}
        )
        claimed = f"{name}, scope {', '.join(scopes)}" if scopes and name != "not private" else name
        methods.append(_Described(label, said["text"], _linked(said["source"]), claimed, (CLAIMS | _NO_CLAIMS).get(name, "")))
    return methods


def _linked(source: str) -> Markup:
    """A citation with links to arXiv."""
    return Markup(re.sub(r"arXiv:? ?(\d{4}\.\d{4,5})", r'<a href="https://arxiv.org/abs/\1">arXiv \1</a>', str(escape(source))))


@dataclass(frozen=True)
class _Shown:
    """A measure: what it is called beside others, its table, and that of paired differences."""

    short: str
    table: ResultsTable
    differences: ResultsTable | None


def _tables(groups: Sequence[Group], measure: str) -> tuple[ResultsTable, ResultsTable | None]:
    differences = difference_table(groups, measure) if measure in COMPARED else None
    return results_table(groups, measure, once=True), differences if differences and differences.blocks else None


def _lacks_bars(group: Group) -> bool:
    return group.spread == "ci95" and len(group.rows) == 2


def _subtitle(groups: Sequence[Group]) -> str:
    """Which data, divided how, under which budgets, over how many seeds."""

    def listed(head: str, values: Iterable[float | None]) -> list[str]:
        given = sorted({value for value in values if value is not None})
        return [head.format(", ".join(map(number, given)))] if given else []

    data = ", ".join(dict.fromkeys(group.dataset for group in groups))
    schemes = ", ".join(dict.fromkeys(group.scheme for group in groups if group.scheme))
    units = ", ".join(dict.fromkeys(f"unit {group.unit}, trust {group.trust}" for group in groups if group.unit and group.trust))
    seeds = max((len(group.rows) for group in groups), default=0)
    parts = [
        *([data] if data else []),
        *([f"partition {schemes}"] if schemes else []),
        *listed("α = {}", (group.alpha for group in groups)),
        *listed("{} clients", (group.clients for group in groups)),
        *listed("ε = {}", (group.epsilon_target for group in groups)),
        *listed("δ = {}", (group.delta for group in groups)),
        *([units] if units else []),
        *([counted(seeds, "seed")] if seeds else []),
    ]
    return " · ".join(parts)


_PLACED = (curves.CURVES, diagnostics.DIAGNOSTICS, sites.SITES, partitions.PARTITIONS, fidelity.FIDELITY, communication.COMMUNICATION)
"""Figures that have a place in the page."""
_LISTED = 6
"""Settings of one kind of failure, and missing cells of one status, that are read at once; the others unfold."""


@dataclass(frozen=True)
class Column:
    """A column of the list of cells: its head and each row's text; whether it holds words; whether it tells where a cell stands."""

    head: str
    text: Callable[[Row], str]
    words: bool = False
    place: bool = False

    @property
    def look(self) -> Markup:
        """What its cells' tags say beside their name."""
        return Markup(' class="word"' if self.words else "")


def _columns(rows: Sequence[Row]) -> list[Column]:
    """The columns, without a place that all cells share: it stands in the table's title, and the width is better spent on what differs."""
    columns = [*_SETTING, *(Column(m.column, _score_text(name)) for name, m in MEASURES.items() if m.column), *_COST]
    return [column for column in columns if not column.place or len({column.text(row) for row in rows}) > 1]


_SETTING = (
    Column("method", lambda row: row.label, words=True),
    Column("data set", lambda row: row.dataset, words=True, place=True),
    Column("α", lambda row: number(row.alpha), place=True),
    Column("clients", lambda row: number(row.clients), place=True),
    Column("seed", lambda row: number(row.seed)),
    Column("status", lambda row: row.status, words=True),
    Column("claim", lambda row: row.claim or "", words=True),
    Column("ε target", lambda row: number(row.epsilon_target)),
    Column("ε spent", lambda row: number(row.epsilon_spent, 4)),
    Column("σ", lambda row: number(row.sigma, 4)),
    Column("q", lambda row: number(row.sample_rate, 3)),
    Column("steps", lambda row: "" if row.steps is None else str(row.steps)),
    Column("clip", lambda row: number(row.clip)),
)
_COST = (
    Column("uplink MB", lambda row: number(None if row.uplink_bytes is None else row.uplink_bytes / 1e6, 3)),
    Column("downlink MB", lambda row: number(None if row.downlink_bytes is None else row.downlink_bytes / 1e6, 3)),
    Column("parameters", lambda row: "" if row.parameters is None else f"{row.parameters:,}"),
    Column("seconds", lambda row: "" if row.seconds is None else f"{row.seconds:.1f}"),
    Column("cell", lambda row: row.cell_id, words=True),
)


def _score_text(name: str) -> Callable[[Row], str]:
    return lambda row: "" if (value := row.value(name)) is None else f"{value:.3f}"


def _facts(manifest: Mapping[str, Any], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Provenance, from the manifest or, without one, from the rows' own versions."""
    facts = {key: manifest[key] for key in ("started", "command", "revision", "hardware", "versions", "judged") if manifest.get(key)}
    if "versions" not in facts and rows and rows[-1].versions:
        facts["versions"] = rows[-1].versions
    return [(key, _spelled(value)) for key, value in facts.items()]


def _spelled(value: Any) -> str:
    if isinstance(value, Mapping):
        return " · ".join(f"{key} {_spelled(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(_spelled(item) for item in value)
    return str(value)
