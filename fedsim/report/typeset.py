"""Tables as GitHub Markdown, LaTeX, HTML and CSV; what users wrote is escaped."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from markupsafe import escape

from fedsim.report.differences import p_words
from fedsim.report.statement import Statement
from fedsim.report.tables import LARGE, Line, ResultsTable, TableBlock
from fedsim.results.summary import inert

TableFormat = Literal["md", "latex", "html", "csv"]
"""GitHub Markdown; LaTeX with ``booktabs`` and ``siunitx``; HTML; or one line a number."""

_LATEX = {
    **{character: f"\\{character}" for character in "_&%#${}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}", "`": r"\textasciigrave{}"},
    **{"<": "$<$", ">": "$>$", "±": r"$\pm$", "−": "$-$", "·": r"$\cdot$", "∞": r"$\infty$", "×": r"$\times$"},
    **{"ε": r"$\varepsilon$", "α": r"$\alpha$", "δ": r"$\delta$", "λ": r"$\lambda$", "σ": r"$\sigma$", "√": r"$\surd$"},
    **{"…": r"\ldots{}", "é": r"\'{e}", "⊙": r"$\odot$"},
}
"""What a character is in LaTeX's text; signs that any input encoding and font have included."""
_PREAMBLE = r"% \usepackage{booktabs,siunitx}"
COLUMN_POINTS = 241.0
"""Width of a two-column paper's column, 8.5 cm, in TeX's points."""
PAGE_POINTS = 500.0
"""Width of both columns, 17.6 cm."""
_LETTER_POINTS, _DIGIT_POINTS, _DOT_POINTS, _GAP_POINTS, _FEWEST_LABEL_POINTS = 4.3, 4.9, 2.7, 6.0, 62.0
"""Widths at 8 points: of a letter, a bold digit, a dot, the gap between columns; and the least that a label is wrapped to."""


def typeset(tables: Sequence[ResultsTable], as_: TableFormat) -> str:
    """The tables one after another, without a newline at the end."""
    if as_ == "csv":
        return _csv(tables)
    if as_ == "md":
        return "\n\n".join(map(_markdown, tables))
    if as_ == "html":
        return "\n".join(map(_html, tables))
    return "\n\n".join((_PREAMBLE, *map(_latex, tables)))


def typeset_statement(statement: Statement) -> str:
    """A privacy statement in LaTeX: a paragraph's head, and an item a sentence."""
    items = (rf"\item[{latex_text(term)}] {latex_text(text)}." for term, text in statement.parts)
    head = rf"\paragraph{{Privacy of {latex_text(statement.method)}}}"
    return "\n".join((head, r"\begin{description}", *items, r"\end{description}"))


def markdown_text(text: str) -> str:
    """A text as it is in GitHub's Markdown, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$&!])", r"\\\1", " ".join(text.split()))


def latex_text(text: str) -> str:
    """A text as it is in LaTeX, on one line."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _csv(tables: Sequence[ResultsTable]) -> str:
    """A line a number: where, method, claim, column, mean, half-width of the interval, seeds, p; what has no number has its text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("table", "where", "method", "claim", "column", "mean", "ci95", "seeds", "p", "text"))
    for table in tables:
        for block in table.blocks:
            for line in block.lines:
                for i, (column, text) in enumerate(zip(table.columns, line.values, strict=True)):
                    if text:
                        known = (table.name, block.place or table.title, line.label, line.claim, column)
                        writer.writerow((*map(inert, known), *_numbers(table, line, i)))
    return out.getvalue().rstrip("\n")


def _numbers(table: ResultsTable, line: Line, column: int) -> tuple[str, ...]:
    interval = line.intervals[column] if line.intervals else None
    if interval is None:
        return "", "", "", "", inert(line.values[column])
    width = "" if interval.half_width is None else f"{interval.half_width:.{table.digits}f}"
    p = line.p[column] if line.p else None
    return f"{interval.mean:.{table.digits}f}", width, str(interval.count), "" if p is None else f"{p:.3g}", ""


def _markdown(table: ResultsTable) -> str:
    """Title, a table for every block below its place, notes."""
    parts = [f"### {markdown_text(table.title)}"]
    for block in table.blocks:
        if head := _head(block, markdown_text, "**{}**"):
            parts.append(head)
        if not block.lines:
            continue
        rules = ["---"] * len(table.heads) + ["---:"] * len(table.columns)
        heads = [markdown_text(text) for text in (*table.heads, *table.columns)]
        lines = [[*map(markdown_text, table.names(line)), *_marked(table, block, line)] for line in block.lines]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in (heads, rules, *lines)))
    if table.notes:
        parts.append("\n".join(f"- {markdown_text(note)}" for note in table.notes))
    return "\n\n".join(parts)


def _html(table: ResultsTable) -> str:
    """The same as a part of a page."""
    parts = [f"<h3>{escape(table.title)}</h3>"]
    for block in table.blocks:
        if head := _head(block, lambda text: str(escape(text)), "<b>{}</b>"):
            parts.append(f"<p>{head}</p>")
        if not block.lines:
            continue
        heads = "".join(f"<th>{escape(text)}</th>" for text in (*table.heads, *table.columns))
        lines = [
            "".join(f"<td>{escape(text)}</td>" for text in table.names(line))
            + "".join(
                f"<td>{'<b>' if (best := table.is_best(block, line, i)) else ''}{escape(text)}{'</b>' if best else ''}</td>"
                for i, text in enumerate(line.values)
            )
            for line in block.lines
        ]
        parts.append("\n".join(("<table>", f"<tr>{heads}</tr>", *(f"<tr>{line}</tr>" for line in lines), "</table>")))
    if table.notes:
        parts.append("\n".join(("<ul>", *(f"<li>{escape(note)}</li>" for note in table.notes), "</ul>")))
    return "\n".join(parts)


def _marked(table: ResultsTable, block: TableBlock, line: Line) -> Iterator[str]:
    for column, text in enumerate(line.values):
        yield f"**{markdown_text(text)}**" if table.is_best(block, line, column) else markdown_text(text)


def _head(block: TableBlock, text: Callable[[str], str], strong: str) -> str:
    """A block's place and references."""
    references = [text(f"{name} {value}") for name, value in block.references]
    return f" {text('·')} ".join([strong.format(text(block.place)), *references] if block.place else references)


def _latex(table: ResultsTable) -> str:
    """A floating table with the title as its caption, a rule above every block, references and notes below.

    It fits a column: uncertainties go into brackets, then labels are wrapped, as needed; a table that does not fit then spans the page.
    """
    label, plain, brackets, environment = _layout(table)
    heads = [latex_text(table.heads[0]), *(f"{{{latex_text(column)}}}" for column in table.columns)]
    references = [f"{block.place}: {words}" if block.place else words for block in table.blocks if (words := _references(block))]
    return "\n".join(
        (
            rf"\begin{{{environment}}}",
            r"\centering\footnotesize",
            r"\setlength{\tabcolsep}{3pt}",
            rf"\sisetup{{uncertainty-mode={'compact' if brackets else 'separate'},text-series-to-math=true}}",
            rf"\caption{{{latex_text(table.title)}}}",
            rf"\label{{tab:{table.name.replace('_', '-')}}}",
            rf"\begin{{tabular}}{{@{{}}{label}{plain * len(table.columns)}@{{}}}}",
            r"\toprule",
            rf"{' & '.join(heads)} \\",
            *(line for block in table.blocks for line in _latex_block(table, block)),
            r"\bottomrule",
            r"\end{tabular}",
            rf"\par\smallskip\raggedright\scriptsize {latex_text('; '.join((*references, *_notes(table, brackets))))}.",
            rf"\end{{{environment}}}",
        )
    )


def _notes(table: ResultsTable, brackets: bool) -> Iterator[str]:
    yield from table.notes
    lines = [(block, line) for block in table.blocks for line in block.lines]
    counts = [interval.count for _, line in lines for interval in line.intervals if interval is not None]
    fewer = [
        f"{line.label} at {column}: {interval.count}"
        for _, line in lines
        for column, interval in zip(table.columns, line.intervals, strict=False)
        if interval is not None and interval.count < max(counts)
    ]
    if fewer:
        yield f"fewer seeds: {', '.join(fewer)}"
    if brackets:
        yield "in brackets: the half-width in units of the last digit"
    if any(table.is_best(block, line, column) for block, line in lines for column in range(len(table.columns))):
        yield "bold: the best of a column, among methods whose claim holds"


def _layout(table: ResultsTable) -> tuple[str, str, bool, str]:
    """Columns of labels and of numbers, whether uncertainties are in brackets, and the environment."""
    lines = [line for block in table.blocks for line in block.lines]
    label = _LETTER_POINTS * max((len(line.named) for line in lines), default=0)
    column = _number_column(table, lines)
    plain, numbers = (
        sum(
            _GAP_POINTS + max(map(_points, (head, *(_shown(table, line, i, brackets) for line in lines))))
            for i, head in enumerate(table.columns)
        )
        for brackets in (False, True)
    )
    for brackets, width in ((False, plain), (True, numbers)):
        if label + width <= COLUMN_POINTS:
            return "l", column, brackets, "table"
    if (left := COLUMN_POINTS - numbers) >= _FEWEST_LABEL_POINTS:
        return rf">{{\raggedright\arraybackslash}}p{{{left:.0f}pt}}", column, True, "table"
    return "l", column, label + plain > PAGE_POINTS, "table*"


def _points(text: str) -> float:
    return sum(_DOT_POINTS if character in ". ()" else _DIGIT_POINTS for character in text)


def _number_column(table: ResultsTable, lines: Sequence[Line]) -> str:
    """A column of siunitx as wide as the widest mean and the widest uncertainty."""
    intervals = [interval for line in lines for interval in line.intervals if interval is not None and abs(interval.mean) < LARGE]
    if not intervals:
        return "r"
    whole = max(len(f"{abs(interval.mean):.0f}") for interval in intervals)
    spread = max((len(_in_last_digits(interval.beside, table.digits)) for interval in intervals if interval.beside), default=0)
    sign = "+" if _signed(table) else "-" if min(interval.mean for interval in intervals) < 0 else ""
    return rf"S[table-format={sign}{whole}.{table.digits}{f'({spread})' if spread else ''}]"


def _in_last_digits(half_width: float, digits: int) -> str:
    return f"{half_width * 10**digits:.0f}"


def _signed(table: ResultsTable) -> bool:
    """Whether a mean is a difference, whose sign is written."""
    return any(line.p for block in table.blocks for line in block.lines)


def _mean(table: ResultsTable, line: Line, column: int) -> str:
    interval = line.intervals[column] if line.intervals else None
    if interval is None or abs(interval.mean) >= LARGE:
        return ""
    return f"{interval.mean:{'+' if _signed(table) else ''}.{table.digits}f}"


def _shown(table: ResultsTable, line: Line, column: int, brackets: bool) -> str:
    """A cell about as wide as it is printed."""
    mean = _mean(table, line, column)
    if not mean:
        return line.values[column]
    half_width = line.intervals[column].beside  # type: ignore[union-attr]
    if half_width is None:
        return mean
    return f"{mean}({_in_last_digits(half_width, table.digits)})" if brackets else f"{mean} ± {half_width:.{table.digits}f}"


def _latex_block(table: ResultsTable, block: TableBlock) -> Iterator[str]:
    yield r"\midrule"
    if block.place:
        yield rf"\multicolumn{{{1 + len(table.columns)}}}{{@{{}}l}}{{\textbf{{{latex_text(block.place)}}}}} \\"
    for line in block.lines:
        cells = [_latex_cell(table, block, line, column) for column in range(len(table.columns))]
        yield rf"{' & '.join([_first(line.named), *cells])} \\"
        if any(p is not None for p in line.p):
            tested = ["" if p is None else rf"{{\scriptsize {latex_text(p_words(p))}}}" for p in line.p]
            yield rf"{' & '.join(['', *tested])} \\"


def _first(text: str) -> str:
    # a bracket behind a line's end would be read as its argument
    return f"{{{cell}}}" if (cell := latex_text(text)).startswith(("[", "*")) else cell


def _latex_cell(table: ResultsTable, block: TableBlock, line: Line, column: int) -> str:
    """A number as siunitx reads it, bold where it is the best; braces around any other text."""
    mean = _mean(table, line, column)
    if not mean:
        return f"{{{latex_text(line.values[column])}}}" if line.values[column] else ""
    half_width = line.intervals[column].beside  # type: ignore[union-attr]
    bold = r"\bfseries " if table.is_best(block, line, column) else ""
    return f"{bold}{mean}" + ("" if half_width is None else f" +- {half_width:.{table.digits}f}")


def _references(block: TableBlock) -> str:
    return ", ".join(f"{name} {value}" for name, value in block.references)
