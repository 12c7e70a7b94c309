"""Tables as GitHub Markdown and as LaTeX; what users wrote is escaped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from fedsim.report.tables import ResultsTable, TableBlock

_LATEX = {
    **{character: f"\\{character}" for character in "_&%#${}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}", "`": r"\textasciigrave{}"},
    **{"<": "$<$", ">": "$>$", "±": r"$\pm$", "−": "$-$", "·": r"$\cdot$", "∞": r"$\infty$"},
    **{"ε": r"$\varepsilon$", "α": r"$\alpha$", "δ": r"$\delta$", "λ": r"$\lambda$", "σ": r"$\sigma$"},
}
"""What a character is in LaTeX's text; signs that any input encoding and font have included."""


def typeset(tables: Sequence[ResultsTable], as_: Literal["md", "latex"]) -> str:
    """The tables one after another, without a newline at the end; LaTeX's need ``booktabs``."""
    if as_ == "md":
        return "\n\n".join(map(_markdown, tables))
    return "\n\n".join(("% \\usepackage{booktabs}", *map(_latex, tables)))


def markdown_text(text: str) -> str:
    """A text as it is in GitHub's Markdown, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$&!])", r"\\\1", " ".join(text.split()))


def latex_text(text: str) -> str:
    """A text as it is in LaTeX, on one line."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _markdown(table: ResultsTable) -> str:
    """Title, a table for every block below its place, notes."""
    parts = [f"### {markdown_text(table.title)}"]
    for block in table.blocks:
        if head := _head(block, markdown_text, "**{}**"):
            parts.append(head)
        if not block.lines:
            continue
        rules = ["---"] * len(table.heads) + ["---:"] * len(table.columns)
        lines = [[*table.names(line), *line.values] for line in block.lines]
        texts = [list(map(markdown_text, line)) for line in ([*table.heads, *table.columns], *lines)]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in (texts[0], rules, *texts[1:])))
    if table.notes:
        parts.append("\n".join(f"- {markdown_text(note)}" for note in table.notes))
    return "\n\n".join(parts)


def _latex(table: ResultsTable) -> str:
    """A floating table with the title as its caption, a rule above every block, notes below."""
    return "\n".join(
        (
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(table.title)}}}",
            rf"\begin{{tabular}}{{{'l' * len(table.heads)}{'r' * len(table.columns)}}}",
            r"\toprule",
            _latex_line((*table.heads, *table.columns)),
            *(line for block in table.blocks for line in _latex_block(table, block)),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\footnotesize {latex_text(note)}" for note in table.notes),
            r"\end{table}",
        )
    )


def _latex_block(table: ResultsTable, block: TableBlock) -> Iterator[str]:
    yield r"\midrule"
    if head := _head(block, latex_text, r"\textbf{{{}}}"):
        yield rf"\multicolumn{{{len(table.heads) + len(table.columns)}}}{{l}}{{{head}}} \\"
    yield from (_latex_line((*table.names(line), *line.values)) for line in block.lines)


def _latex_line(texts: Sequence[str]) -> str:
    # a bracket behind a line's end would be read as its argument
    cells = [f"{{{cell}}}" if (cell := latex_text(text)).startswith(("[", "*")) else cell for text in texts]
    return rf"{' & '.join(cells)} \\"


def _head(block: TableBlock, text: Callable[[str], str], strong: str) -> str:
    """A block's place and references."""
    references = [text(f"{name} {value}") for name, value in block.references]
    return f" {text('·')} ".join([strong.format(text(block.place)), *references] if block.place else references)
