"""The page: one self-contained HTML file with the curves, the tables, what failed, and what the privacy numbers mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from fedsim.privacy.plan import large_delta
from fedsim.report.diagnostics import NOT_PRIVATE
from fedsim.report.failures import HELP, MEANING, Finding, by_kind, setting
from fedsim.report.figures import SERIES, SHADES, inline_svg
from fedsim.report.tables import CLAIM_WORDS, claim, number, results_tables
from fedsim.results.groups import Group
from fedsim.results.measures import MEASURES
from fedsim.results.rows import UNDRAWN, Row

_UNITS = {
    "example": "one training example: neighbouring data sets differ in one example of one client",
    "client": "one client: what it contributes is there or is zero; the number of clients stays a public divisor",
}
_TRUSTS = {
    "aggregate": "only the sum over clients is seen (secure aggregation or a trusted server), noise is added once to it",
    "silo": "every client's message is private by itself, each carries the full noise",
}
_NOISES = {
    "seeded": "it follows from a seed that stands in the results: this measures what a method costs, nothing made here may be released",
    "secret": "from the operating system's entropy, kept nowhere; generators whose claim is a theorem may be released under their ε",
}
_CLAIMS = {
    "proved": "(ε, δ) is a theorem for this method",
    "checked": "(ε, δ) is a theorem by its author's word, and a passed fedsim check of this code, which refutes and does not prove",
    "stated": "(ε, δ) is a theorem by its author's word alone; no passed fedsim check of this code is on file",
    "heuristic": "(ε, δ) is computed for the noise that was added, but is not a theorem for this method",
    "none": "no privacy is claimed",
}


_TITLES = {
    "privacy_utility": "Privacy-utility curves",
    "diagnostics": "Diagnostics of the rounds",
    "partitions": "Rows by label and client",
}


def render_page(
    name: str,
    rows: Sequence[Row],
    groups: Sequence[Group],
    figures: Mapping[str, Figure],
    manifest: Mapping[str, Any],
    findings: Sequence[Finding] = (),
) -> str:
    """The HTML of a report.

    Every text from rows and manifest is escaped; the page loads nothing and runs no script.

    Args:
        name: the grid's name.
        rows: the rows of the grid.
        groups: the same rows as ``group_seeds`` gives them.
        figures: by a key of ``_TITLES``; one that has nothing to show is left out.
        manifest: the run's manifest; may be empty.
        findings: the known failures that were seen.
    """
    counts = {status: sum(row.status == status for row in rows) for status in ("ok", *UNDRAWN)}
    counts["not run yet"] = max(0, len(manifest.get("cells") or rows) - len(rows))
    columns = _columns(rows)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_PAGE).render(
        name=name,
        # Figures are matplotlib's own output, where every text is an outline and comments are escaped.
        figures={key: Markup(inline_svg(figures[key], title, key)) if key in figures else "" for key, title in _TITLES.items()},
        findings=by_kind(findings),
        known=list(HELP),
        help=HELP,
        meaning=MEANING,
        not_private=NOT_PRIVATE,
        listed=_LISTED,
        style=Markup(_STYLE),
        counts=[(status, count) for status, count in counts.items() if count or status == "ok"],
        tables=results_tables(groups),
        claim_words=CLAIM_WORDS,
        number=number,
        privacy=_privacy(groups, rows),
        methods=_methods(groups),
        columns=columns,
        rows=rows,
        failures=[(row, _setting(row)) for row in rows if row.status == "failed"],
        overspent=[(row, _setting(row)) for row in rows if row.status == "overspent"],
        unaccounted=[(row, _setting(row)) for row in rows if row.status == "unaccounted"],
        undrawn=UNDRAWN,
        refused=manifest.get("refused") or [],
        facts=_facts(manifest, rows),
        grid=yaml.safe_dump(_plain(manifest["grid"]), sort_keys=False, allow_unicode=True) if "grid" in manifest else "",
    )


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
        *(("unit", f"{unit}, that is {_UNITS[unit]}") for unit in units),
        *(("trust", f"{trust}, that is {_TRUSTS[trust]}") for trust in trusts),
        *([("δ", ", ".join(deltas))] if deltas else []),
        *(("noise", f"{noise}: {_NOISES[noise]}") for noise in noises),
        *(("warning", text) for text in _large_deltas(spent)),
        *([("accountant", ", ".join(name.upper() for name in accountants))] if accountants else []),
    ]


def _large_deltas(rows: Sequence[Row]) -> Iterator[str]:
    """Budgets whose delta is too large for the data."""
    settings = dict.fromkeys((row.unit, row.delta, row.train_rows, row.dataset) for row in rows)
    for unit, delta, count, dataset in settings:
        if unit is not None and delta is not None and count is not None and (text := large_delta(unit, delta, count, dataset)):
            yield text


def _methods(groups: Sequence[Group]) -> list[tuple[str, str, str]]:
    by_label: dict[str, list[Group]] = {}
    for group in groups:
        by_label.setdefault(group.label, []).append(group)
    told = []
    for label, members in by_label.items():
        name = claim(members)
        scopes = dict.fromkeys(group.scope for group in members if group.scope)
        words = _CLAIMS.get(name, "no noise is added and ε has no meaning" if name == "not private" else "")
        told.append((label, f"{name}, scope {', '.join(scopes)}" if scopes and name != "not private" else name, words))
    return told


_LISTED = 6
"""Settings of one kind of failure that are read at once; the others unfold."""


@dataclass(frozen=True)
class Column:
    """A column of the list of cells: its head and each row's text; whether it holds words; whether it tells where a cell stands."""

    head: str
    text: Callable[[Row], str]
    words: bool = False
    place: bool = False


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
    Column("ε spent", lambda row: _digits(row.epsilon_spent, 4)),
    Column("ε replace-one", lambda row: _digits(row.epsilon_spent_replace_one, 4)),
    Column("σ", lambda row: _digits(row.sigma, 4)),
    Column("q", lambda row: _digits(row.sample_rate, 3)),
    Column("steps", lambda row: "" if row.steps is None else str(row.steps)),
    Column("clip", lambda row: number(row.clip)),
)
_COST = (
    Column("uplink MB", lambda row: "" if row.uplink_bytes is None else _digits(row.uplink_bytes / 1e6, 3)),
    Column("seconds", lambda row: "" if row.seconds is None else f"{row.seconds:.1f}"),
    Column("cell", lambda row: row.cell_id, words=True),
)


def _score_text(name: str) -> Callable[[Row], str]:
    return lambda row: "" if (value := row.value(name)) is None else f"{value:.3f}"


def _setting(row: Row) -> str:
    return f"{setting(row)} · seed {row.seed}"


def _digits(value: float | None, digits: int) -> str:
    return "" if value is None else "∞" if value == math.inf else f"{value:.{digits}g}"


def _facts(manifest: Mapping[str, Any], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Provenance, from the manifest or, without one, from the rows' own versions."""
    told = {key: manifest[key] for key in ("started", "command", "revision", "hardware", "versions") if manifest.get(key)}
    if "versions" not in told and rows and rows[-1].versions:
        told["versions"] = rows[-1].versions
    return [(key, _told(value)) for key, value in told.items()]


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return " · ".join(f"{key} {_told(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(_told(item) for item in value)
    return str(value)


def _plain(value: Any) -> Any:
    """A manifest's grid with its "inf" strings as YAML's .inf, as a grid file has them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return math.inf if value == "inf" else value


_LIGHT = "--ink:#1c2430;--muted:#5f6775;--grid:#e4e7ec;--paper:#ffffff;--wash:#f6f7f9;--bad:#b3261e;--accent:#0072b2;"
_DARK = "--ink:#e6e9ef;--muted:#9aa3b2;--grid:#2b323d;--paper:#12161c;--wash:#1a2028;--bad:#ff8a80;--accent:#5cb8f0;"
# The same hues, lighter, so that lines and names keep their contrast on the dark paper.
_DARK_SERIES = ("#4aa8e0", "#f08a4b", "#35c79a", "#e29bc6", "#f0b840", "#8cccf2")
# The shades' order of hues, lighter: from yellow (small epsilon) to blue (no noise).
_DARK_SHADES = ("#fbe04a", "#fba23c", "#f2736b", "#e0609f", "#b873d8", "#938af5", "#7f9cff")


def _variables(name: str, colours: Sequence[str]) -> str:
    return "".join(f"--{name}-{position}:{colour};" for position, colour in enumerate(colours))


_STYLE = (
    f":root{{color-scheme:light dark;{_LIGHT}{_variables('series', SERIES)}{_variables('shade', SHADES)}}}\n"
    f"@media (prefers-color-scheme:dark){{:root{{{_DARK}{_variables('series', _DARK_SERIES)}{_variables('shade', _DARK_SHADES)}}}}}\n"
    """
*{box-sizing:border-box}
body{margin:0 auto;max-width:1160px;padding:2.5rem 1.25rem 4rem;background:var(--paper);color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .25rem;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.75rem 0 .75rem;padding-top:1rem;border-top:1px solid var(--grid)}
p{max-width:46rem;margin:.5rem 0}
.sub,.notes,figcaption{color:var(--muted);font-size:.9rem}
.counts{display:flex;flex-wrap:wrap;gap:.5rem;padding:0;margin:1rem 0;list-style:none}
.counts li{padding:.15rem .7rem;border:1px solid var(--grid);border-radius:1rem;background:var(--wash);font-size:.9rem}
.counts .failed,.counts .overspent,.counts .unaccounted,.bad{color:var(--bad)}
figure{margin:1.25rem 0}
figure svg{display:block;width:100%;height:auto;max-height:120vh}
#diagnostics svg{max-height:none}
h3{font-size:1rem;margin:1.25rem 0 .25rem}
ul.findings{margin:.25rem 0;padding-left:1.2rem;font-size:.9rem;overflow-wrap:anywhere}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:.35rem .7rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--grid)}
th{font-weight:600;color:var(--muted);font-size:.82rem}
.word{text-align:left}
.method{white-space:normal;overflow-wrap:anywhere;min-width:9rem}
tr.place th{color:var(--ink);text-align:left;padding-top:1.1rem;border-bottom-color:var(--muted);font-size:.9rem}
tr.place span{font-weight:400;color:var(--muted);margin-left:.9rem}
.cells{font-size:.8rem}
.cells th,.cells td{padding:.25rem .55rem}
.cells td:last-child{font-family:ui-monospace,"DejaVu Sans Mono",monospace;color:var(--muted)}
tr.failed td,tr.overspent td,tr.unaccounted td{color:var(--bad)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1.25rem;margin:.75rem 0}
dt{color:var(--muted)}
dd{margin:0;overflow-wrap:anywhere}
summary{cursor:pointer;color:var(--accent);margin:.5rem 0}
pre{background:var(--wash);border:1px solid var(--grid);border-radius:6px;padding:.8rem 1rem;overflow:auto;font-size:.8rem;
  line-height:1.45;max-height:28rem}
.warning{border-left:3px solid var(--bad);padding:.1rem 0 .1rem .9rem}
@media print{body{max-width:none;padding:0}details>*{display:block}}
"""
)

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }} · fedsim</title>
<style>{{ style }}</style>
</head>
<body>
<header>
<h1>{{ name }}</h1>
<p class="sub">federated generative algorithms under one partition and one privacy budget, by fedsim</p>
<ul class="counts">
{% for status, count in counts %}
<li class="{{ status }}">{{ count }} {{ "cell" if count == 1 else "cells" }} {{ status }}</li>
{% endfor %}
</ul>
<p><strong>How to read it.</strong> A point is the balanced accuracy on real test data of a linear probe that was
trained on a method's synthetic embeddings alone, or of the method's own classifier if it has no generator: higher is
more useful, further left (a smaller ε) is more private, and bars are 95&nbsp;% confidence intervals over seeds. The
grey lines say what to expect: the <em>ceiling</em> is the same probe trained on all real training data,
<em>local-only</em> the mean of probes that each client trains on its own data, and <em>chance</em> a guess.</p>
</header>

<section id="curves">
<h2>Privacy against utility</h2>
{% if figures.privacy_utility %}
<figure>{{ figures.privacy_utility }}</figure>
{% else %}
<p>There is nothing to draw: no cell ended with status ok.</p>
{% endif %}
</section>

<section id="results">
<h2>Results</h2>
{% for table in tables %}
<p class="sub">{{ table.title }}</p>
<div class="scroll"><table>
<thead><tr><th class="word" scope="col">method</th><th class="word" scope="col">claim</th>
{% for column in table.columns %}
<th scope="col">{{ column }}</th>
{% endfor %}
</tr></thead>
{% for block in table.blocks %}
<tbody>
<tr class="place"><th colspan="{{ table.columns | length + 2 }}">{{ block.place }}
{% for reference, value in block.references %}
<span>{{ reference }} {{ value }}</span>
{% endfor %}
</th></tr>
{% for line in block.lines %}
<tr><td class="word method">{{ line.label }}</td><td class="word">{{ claim_words.get(line.claim, line.claim) }}</td>
{% for value in line.values %}
<td{% if value in undrawn %} class="bad"{% endif %}>{{ value }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
{% endfor %}
</table></div>
{% for note in table.notes %}
<p class="notes">{{ note }}</p>
{% endfor %}
{% endfor %}
</section>

{% if failures or overspent or unaccounted or refused %}
<section id="failures">
<h2>What is missing from the curves</h2>
{% for entry in refused %}
<p class="bad">{{ entry.algorithm }}: left out, its plug-in was refused: {{ entry.error }}</p>
{% endfor %}
{% for row, setting in overspent %}
<p class="bad">{{ setting }}: overspent, ε = {{ number(row.epsilon_spent) or "unknown" }} was spent where
{{ number(row.epsilon_target) }} was allowed; never drawn, in no mean</p>
{% endfor %}
{% for row, setting in unaccounted %}
<p class="bad">{{ setting }}: unaccounted, what ran is not what was planned, so nothing is known of its ε: {{ row.error.message }};
never drawn, in no mean</p>
{% endfor %}
{% for row, setting in failures %}
<p class="bad">{{ setting }}: {{ row.error.type }}: {{ row.error.message }}</p>
<details><summary>traceback of {{ row.cell_id }}</summary><pre>{{ row.error.traceback }}</pre></details>
{% endfor %}
</section>
{% endif %}

{% if findings or figures.diagnostics %}
{% macro listing(members) %}
<ul class="findings">
{% for finding in members %}
<li><strong>{{ finding.setting }}</strong>: {{ finding.observed }}</li>
{% endfor %}
</ul>
{% endmacro %}
<section id="diagnostics">
<h2>Diagnostics</h2>
<p class="warning">{{ not_private }}</p>
{% for kind, members in findings.items() %}
<h3 class="bad">{{ kind }}</h3>
<p class="notes">{{ meaning[kind] }}; what usually helps: {{ help[kind] }}</p>
{{ listing(members[:listed]) }}
{% if members | length > listed %}
<details><summary>{{ members | length - listed }} more</summary>{{ listing(members[listed:]) }}</details>
{% endif %}
{% else %}
<p>None of the known failures was seen: {{ known | join(", ") }}.</p>
{% endfor %}
{% if figures.diagnostics %}
<figure>{{ figures.diagnostics }}</figure>
{% endif %}
</section>
{% endif %}

{% if figures.partitions %}
<section id="partitions">
<h2>Who holds what</h2>
<figure>{{ figures.partitions }}</figure>
</section>
{% endif %}

<section id="privacy">
<h2>What the privacy numbers mean</h2>
<dl>
{% for term, text in privacy %}
<dt>{{ term }}</dt><dd>{{ text }}</dd>
{% endfor %}
{% for label, name, words in methods %}
<dt>{{ label }}</dt><dd>{{ name }}{{ ": " ~ words if words }}</dd>
{% endfor %}
</dl>
<p class="warning">Scores, references and <code>rounds.jsonl</code> are computed from the real data without noise and are not
private; neither is the choice of settings after looking at them.</p>
</section>

<section id="cells">
<h2>Cells</h2>
<details{{ " open" if rows | length <= 80 }}><summary>{{ rows | length }} rows, one a cell</summary>
<div class="scroll"><table class="cells">
<thead><tr>
{% for column in columns %}
<th scope="col"{% if column.words %} class="word"{% endif %}>{{ column.head }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in rows %}
<tr class="{{ row.status }}">
{%- for column in columns %}<td{% if column.words %} class="word"{% endif %}>{{ column.text(row) }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
<p class="notes">ε target and ε spent: under add-or-remove-one; ε replace-one: what was spent at the same δ if neighbours differ in a unit's
content; σ: noise multiplier; q: sampling rate; steps: noisy steps of the plan; uplink: all clients, all rounds</p>
</details>
</section>

{% if facts or grid %}
<section id="manifest">
<h2>How it was made</h2>
<dl>
{% for term, text in facts %}
<dt>{{ term }}</dt><dd>{{ text }}</dd>
{% endfor %}
</dl>
{% if grid %}
<details><summary>the grid, resolved</summary><pre>{{ grid }}</pre></details>
{% endif %}
</section>
{% endif %}
</body>
</html>
"""
