"""The page: one self-contained HTML file with the curve, what is wrong with the run, the table, and what was run."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

import pandas as pd
import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fedsim.evaluation.measures import MEASURES
from fedsim.json_lines import decode
from fedsim.report.findings import Finding
from fedsim.report.rounds import NOT_PRIVATE
from fedsim.report.statement import CLAIMS, NOISES, TRUSTS, statements, unit_words
from fedsim.report.tables import Table, claim, difference_table, measures_of, results_table, tuned_table
from fedsim.results.columns import UNDRAWN, Row, large_deltas
from fedsim.results.stats import Settings
from fedsim.words import counted, number

COMPARED = ("balanced_accuracy", "client_balanced_accuracy")
"""Measures whose paired differences are shown."""
LISTED = 4
"""Settings of one kind of failure, and missing cells of one status, that are read at once; the others unfold."""
_NO_CLAIMS = {
    "not private": "no noise is added and ε has no meaning",
    "refuted": "(ε, δ) is claimed, and an audit refutes it at one budget or more",
}


class Picture(NamedTuple):
    """A figure as it stands in a page."""

    title: str
    caption: str
    svg: bytes

    @property
    def source(self) -> str:
        """Of an image: loads nothing, and its ids are its own."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


def render_page(
    name: str,
    rows: Sequence[Row],
    settings: Settings,
    pictures: Mapping[str, Picture],
    manifest: Mapping[str, Any],
    findings: Sequence[Finding] = (),
    by_site: Table | None = None,
) -> str:
    """The HTML of a report.

    Every text from rows and manifest is escaped; the page loads nothing and runs no script.

    Args:
        name: the grid's name.
        rows: of the grid.
        settings: of the same rows.
        pictures: the figures that there are, by name.
        manifest: the run's; may be empty.
        findings: the known failures that were seen.
        by_site: the table by site.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html, style = (files(__package__).joinpath(file).read_text(encoding="utf-8") for file in ("page.html", "page.css"))
    counts = {status: sum(row.status == status for row in rows) for status in ("ok", *UNDRAWN)}
    counts["not run yet"] = max(0, len(manifest.get("cells") or rows) - len(rows))
    measures = measures_of(settings)
    main, *others = [results_table(settings, measure) for measure in measures]
    differences = [difference_table(settings, measure) for measure in COMPARED if measure in measures]
    more = [table for table in [*others, *differences, tuned_table(settings)] if table is not None]
    return environment.from_string(html).render(
        name=name,
        subtitle=_subtitle(settings.facts),
        style=Markup(style),
        counts=[(status, count) for status, count in counts.items() if count or status == "ok"],
        pictures=pictures,
        few=settings.spread == "ci95" and (settings.facts["seeds"] == 2).any(),
        findings=findings,
        missing=[(status, [row for row in rows if row.status == status]) for status in UNDRAWN if counts[status]],
        failed=next((row for row in rows if row.status == "failed"), None),
        refused=manifest.get("refused") or [],
        listed=LISTED,
        main=Markup(main.html()),
        more=[(table.title.split(" · ")[0], Markup(table.html())) for table in more],
        by_site=by_site and Markup(by_site.html()),
        not_private=NOT_PRIVATE,
        methods=list(_methods(settings.facts, manifest.get("methods") or ())),
        privacy=list(_privacy(settings.facts, rows)),
        statements=statements(rows),
        cells=_cells(settings),
        count=counted(len(rows), "row"),
        facts=[(key, _spelled(manifest[key])) for key in ("started", "command", "revision", "hardware", "versions") if manifest.get(key)],
        grid=yaml.safe_dump(decode(manifest["grid"]), sort_keys=False, allow_unicode=True) if "grid" in manifest else "",
    )


def _subtitle(facts: pd.DataFrame) -> str:
    """Which data, divided how, under which budgets, over how many seeds."""
    heads = {"dataset": "{}", "scheme": "partition {}", "alpha": "α = {}", "clients": "{} clients", "epsilon_target": "ε = {}"}
    heads |= {"delta": "δ = {}", "unit": "unit {}", "trust": "trust {}"}
    given = {head: _texts(facts[column].dropna().drop_duplicates().sort_values()) for column, head in heads.items()}
    parts = [head.format(", ".join(values)) for head, values in given.items() if len(values)]
    seeds = int(facts["seeds"].max()) if len(facts) else 0
    return " · ".join([*parts, *([counted(seeds, "seed")] if seeds else [])])


def _methods(facts: pd.DataFrame, known: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, str, Markup, str]]:
    """Every method: its label, what it is, the papers that it follows, its claim and what that means.

    ``known`` is what the manifest says of them, by the labels of the grid.
    """
    for label, own in facts.groupby("label", sort=False):
        # what differs between settings of one label stands behind it in brackets
        said = next((each for each in known if f"{label} (".startswith(f"{each['label']} (")), {"text": "", "source": ""})
        word, scopes = claim(own), ", ".join(dict.fromkeys(own["scope"].dropna()))
        claimed = f"{word}, scope {scopes}" if scopes and word != "not private" else word
        yield str(label), said["text"], _linked(said["source"]), ": ".join(filter(None, (claimed, (CLAIMS | _NO_CLAIMS).get(word))))


def _linked(source: str) -> Markup:
    """A citation with links to arXiv."""
    return Markup(re.sub(r"arXiv:? ?(\d{4}\.\d{4,5})", r'<a href="https://arxiv.org/abs/\1">arXiv \1</a>', escape(source)))


def _privacy(facts: pd.DataFrame, rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """What the epsilons of the page are about, each fact once."""
    spent = [row for row in rows if row.epsilon_target is not None and math.isfinite(row.epsilon_target)]
    yield from (("unit", f"{unit}, that is {unit_words(unit)}") for unit in facts["unit"].dropna().unique())
    yield from (("trust", f"{trust}, that is {TRUSTS[trust]}") for trust in facts["trust"].dropna().unique())
    yield from (("noise", f"{noise}: {NOISES[noise]}") for noise in dict.fromkeys(row.noise for row in spent))
    yield from (("warning", text) for text in large_deltas(spent))
    if accountants := [name.upper() for name in dict.fromkeys(row.accountant for row in spent) if name]:
        yield "accountant", ", ".join(accountants)


def _cells(settings: Settings) -> Markup:
    """A line a row, without a place that all rows share."""
    rows = settings.rows
    shown = {"data set": "dataset", "α": "alpha", "clients": "clients"}
    shown = {head: name for head, name in shown.items() if rows[name].nunique(dropna=False) > 1}
    shown |= {"seed": "seed", "status": "status", "claim": "claim", "ε target": "epsilon_target"}
    texts = {
        "method": rows["label"],
        **{head: _texts(rows[name]) for head, name in shown.items()},
        "ε spent": _texts(rows["epsilon_spent"], 4),
    }
    texts["mechanisms"] = rows["mechanisms"].map(lambda held: "; ".join(map(_mechanism, held)) if isinstance(held, list) else "")
    texts |= {measure.column: rows[name].map("{:.3f}".format, na_action="ignore") for name, measure in MEASURES.items() if measure.column}
    texts |= {f"{way} MB": _texts(rows[f"{way}_bytes"].astype("float64") / 1e6, 3) for way in ("uplink", "downlink")}
    texts |= {"parameters": _texts(rows["parameters"]), "seconds": _texts(rows["seconds"], 3), "cell": rows["cell_id"]}
    return Markup(pd.DataFrame(texts).astype("object").fillna("").to_html(index=False, border=0, classes="cells"))


def _texts(values: pd.Series[Any], digits: int = 6) -> pd.Series[str]:
    return values.map(lambda value: "" if pd.isna(value) else number(value, digits) if isinstance(value, float) else str(value))


def _mechanism(held: Mapping[str, Any]) -> str:
    """A mechanism in a few words: its noise multiplier, sample rate and count."""
    return f"{held['release']} σ {number(held['noise_multiplier'], 3)}, q {number(held['sample_rate'], 3)}, × {held['count']}"


def _spelled(value: Any) -> str:
    if isinstance(value, Mapping):
        return " · ".join(f"{key} {_spelled(item)}" for key, item in value.items())
    return " ".join(_spelled(item) for item in value) if isinstance(value, list | tuple) else str(value)
