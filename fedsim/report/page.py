"""The page: one self-contained HTML file with the curves, the tables, what failed, and what the privacy numbers mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from fedsim.evaluation.measures import MEASURES
from fedsim.json_lines import decode
from fedsim.report import curves, diagnostics
from fedsim.report.diagnostics import DIAGNOSTICS_NOT_PRIVATE
from fedsim.report.differences import difference_tables
from fedsim.report.failures import HELP, MEANING, KnownFailure, by_kind
from fedsim.report.figures import SERIES, SHADES, Drawn, inline_svg
from fedsim.report.statement import CLAIMS, NOISES, TRUSTS, statements, unit_words
from fedsim.report.tables import claim, results_tables
from fedsim.results.contradictions import large_deltas
from fedsim.results.groups import Group, grouped
from fedsim.results.rows import UNDRAWN, Row
from fedsim.words import number


def render_page(
    name: str,
    rows: Sequence[Row],
    groups: Sequence[Group],
    drawn: Sequence[Drawn],
    manifest: Mapping[str, Any],
    findings: Sequence[KnownFailure] = (),
) -> str:
    """The HTML of a report.

    Every text from rows and manifest is escaped; the page loads nothing and runs no script.

    Args:
        name: the grid's name.
        rows: the rows of the grid.
        groups: the same rows as ``group_seeds`` gives them.
        drawn: the figures, in their order; the curves and the diagnostics stand in sections of their own, every other one follows them.
        manifest: the run's manifest; may be empty.
        findings: the known failures that were seen.
    """
    counts = {status: sum(row.status == status for row in rows) for status in ("ok", *UNDRAWN)}
    counts["not run yet"] = max(0, len(manifest.get("cells") or rows) - len(rows))
    columns = _columns(rows)
    cells = [(column.look, column.text) for column in columns]
    differences = difference_tables(groups)
    return _template("page.html").render(
        name=name,
        # Figures are matplotlib's own output, where every text is an outline and comments are escaped.
        figures={figure.name: Markup(inline_svg(figure.svg, escape(figure.title), figure.name)) for figure in drawn},
        others=[figure for figure in drawn if figure.name not in (curves.CURVES, diagnostics.DIAGNOSTICS)],
        findings=by_kind(findings),
        known=list(HELP),
        help=HELP,
        meaning=MEANING,
        not_private=DIAGNOSTICS_NOT_PRIVATE,
        listed=_LISTED,
        style=Markup(_template("page.css").render(series=SERIES, shades=SHADES)),
        counts=[(status, count) for status, count in counts.items() if count or status == "ok"],
        tables=results_tables(groups),
        differences=differences,
        few_differences=sum(len(block.lines) for table in differences for block in table.blocks) <= _READ_AT_ONCE,
        number=number,
        privacy=_privacy(groups, rows),
        methods=_methods(groups),
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


def _methods(groups: Sequence[Group]) -> list[tuple[str, str, str]]:
    methods = []
    for label, members in grouped(groups, lambda group: group.label).items():
        name = claim(members)
        scopes = dict.fromkeys(group.scope for group in members if group.scope)
        words = (CLAIMS | _NO_CLAIMS).get(name, "")
        methods.append((label, f"{name}, scope {', '.join(scopes)}" if scopes and name != "not private" else name, words))
    return methods


_READ_AT_ONCE = 40
"""Lines of differences above which their tables are folded."""
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
