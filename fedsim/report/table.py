"""A table of results as a reader sees it, in a terminal or as Markdown, LaTeX, HTML or CSV.

All texts in a :class:`Table` are plain. They are escaped when the table is written in a format.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import pandas as pd
from rich.console import Console, Group
from rich.text import Text

from fedsim.errors import check_choice
from fedsim.evaluation.measures import MEASURES
from fedsim.report.terminal import fitting_columns, frame_table
from fedsim.words import Printed, counted, print_line

TableFormat = Literal["md", "latex", "html", "csv"]
"""The formats of :meth:`Table.text`."""
MOST_LINES = 50
"""The number of terminal lines that the tables at the end of a bench may take together."""
_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "_&%#${}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": "$<$",
        ">": "$>$",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "−": "$-$",
        "·": r"$\cdot$",
        "∞": r"$\infty$",
        "×": r"$\times$",
        "†": r"$\dagger$",
        "⊙": r"$\odot$",
        "[": "{[}",
        "*": "{*}",
        "ε": r"$\varepsilon$",
        "α": r"$\alpha$",
        "δ": r"$\delta$",
        "λ": r"$\lambda$",
        "σ": r"$\sigma$",
    }
)
"""The LaTeX code of characters with a meaning in LaTeX, and of symbols in fedsim's own texts."""


@dataclass(frozen=True, repr=False)
class Table(Printed):
    """A table of texts, with one block per place and one line per method.

    A place is what the results of a block have in common, in words, such as data set and partition.
    It is an empty text if all results have it in common.

    Attributes:
        name: A short name without blanks, such as that of the measure. LaTeX labels use it, and
            :func:`show_briefly` finds the command for the table by it.
        title: The title. Its first part names the content, such as the measure. Further parts,
            after " · ", say what all results of the table have in common.
        texts: The texts. The index has two levels, place and method. The columns have the names
            that are shown as heads.
        notes: The sentences that are shown below the table.
        numbers: The same results as numbers, one line per value, for CSV.
        best: Whether each text is marked as best, in the shape of ``texts``. None if nothing is
            marked.
        caption: The sentences that follow the title in the LaTeX caption. A note that is one of
            them is not repeated below the LaTeX table.
    """

    fits_width: ClassVar[bool] = True
    name: str
    title: str
    texts: pd.DataFrame
    notes: tuple[str, ...]
    numbers: pd.DataFrame
    best: pd.DataFrame | None = None
    caption: tuple[str, ...] = ()

    @property
    def short_title(self) -> str:
        """The first part of the title, such as the name of the measure."""
        return self.title.split(" · ")[0]

    def text(self, as_: TableFormat) -> str:
        """Return the table as text in a format, with everything that users wrote escaped.

        Args:
            as_: ``md`` (Markdown), ``latex``, ``html``, or ``csv`` (numbers instead of texts).

        Raises:
            UserError: There is no such format.
        """
        check_choice("format", as_, get_args(TableFormat))
        if as_ == "md":
            return self._markdown()
        if as_ == "latex":
            return self._latex()
        if as_ == "html":
            return self.html()
        return inert(self.numbers).to_csv(index=False).rstrip("\n")

    def html(self) -> str:
        """Return the table as a part of an HTML page: a heading, one table per place, the notes."""
        parts = [f"<h3>{escape(self.title)}</h3>"]
        for place, texts in _blocks(self._marked(escape, "<b>{}</b>")):
            if place:
                parts.append(f"<h4>{place}</h4>")
            table = texts.to_html(
                escape=False,
                border=0,
                classes="results",
            )
            parts.append(f'<div class="scroll">{table}</div>')
        notes = " ".join(map(escape, self.notes))
        parts.append(f'<p class="notes">{notes}</p>')
        return "\n".join(parts)

    def _markdown(self) -> str:
        """Return the table as GitHub's Markdown: a heading, one table per place, the notes."""
        parts = [f"### {markdown_text(self.title)}"]
        for place, texts in _blocks(self._marked(markdown_text, "**{}**")):
            if place:
                parts.append(f"**{place}**")
            parts.append(_markdown_table(texts))
        notes = [f"- {markdown_text(note)}" for note in self.notes]
        return "\n\n".join([*parts, "\n".join(notes)])

    def _latex(self) -> str:
        """Return the table as a LaTeX ``table`` that needs the package booktabs.

        A table with a single place has no column for the place.
        """
        texts = self._marked(latex_text, r"\textbf{{{}}}")
        if texts.index.get_level_values(0).nunique() < 2:
            texts = texts.droplevel(0)
        title = self.title
        if self.caption:
            title = f"{self.short_title}."
        table: str = texts.style.to_latex(
            hrules=True,
            position_float="centering",
            multirow_align="naive",
            column_format="l" * texts.index.nlevels + "r" * texts.shape[1],
            label=f"tab:{self.name.replace('_', '-')}",
            caption=latex_text(" ".join([title, *self.caption])),
        )
        notes = latex_text(" ".join(note for note in self.notes if note not in self.caption))
        if notes:
            footnote = rf"\par\smallskip\raggedright\footnotesize {notes}"
            table = table.replace(
                r"\end{table}",
                f"{footnote}\n\\end{{table}}",
            )
        return f"% \\usepackage{{booktabs}}\n{table}".rstrip("\n")

    def _repr_html_(self) -> str:
        """Return the HTML by which a notebook shows the table."""
        return notebook_html(self.html())

    def show(self, console: Console) -> None:
        """Print the title, one table per place, and the notes."""
        for part in self._parts(console):
            console.print(part)

    def show_beginning(self, console: Console, most_lines: int) -> str:
        """Print the title, the blocks that fit into a number of lines, and the notes.

        The first block is always printed.

        Args:
            console: Where the table is printed.
            most_lines: How many lines title, blocks and notes may take together.

        Returns:
            How many blocks are left out, in words; an empty text if all are printed.
        """
        title, *blocks, notes = self._parts(console)
        room = most_lines - _lines_of(console, title, notes)
        shown: list[Group] = []
        for block in blocks:
            room -= _lines_of(console, block)
            if shown and room < 0:
                break
            shown.append(block)
        for part in (title, *shown, notes):
            console.print(part)
        left_out = len(blocks) - len(shown)
        if left_out:
            return f"{left_out} of {len(blocks)} parts of this table"
        return ""

    def lines(self, console: Console) -> int:
        """Return the number of lines that :meth:`show` prints."""
        return _lines_of(console, *self._parts(console))

    def _parts(self, console: Console) -> list[Any]:
        """Return what :meth:`show` prints: the title, one block per place, and the notes.

        Each block leaves out the columns that do not fit the console's width. A note says how many
        columns are left out in the block that lacks most.
        """
        blocks: list[Any] = []
        most_left_out = 0
        for place, texts in _blocks(self.texts):
            whole = texts.reset_index()
            fitting = fitting_columns(whole, console.width)
            # Columns without any text do not count as left out.
            filled_columns = int(whole.astype(bool).any().sum())
            most_left_out = max(
                most_left_out,
                filled_columns - fitting.shape[1],
            )
            heading = f"\n{place}" if place else ""
            block = frame_table("", fitting, console.width)
            blocks.append(
                Group(
                    Text(heading, style="bold cyan"),
                    block,
                )
            )
        notes = ["", *self.notes]
        if most_left_out:
            columns = counted(most_left_out, "column")
            notes.append(
                f"The terminal is too narrow for {columns}. --format csv writes all columns."
            )
        title = Text(self.title, style="bold")
        return [title, *blocks, Text("\n".join([*notes, ""]), style="dim")]

    def _marked(self, escape_text: Callable[[str], str], strong: str) -> pd.DataFrame:
        """Return the texts with places, methods and heads, all escaped, and the best texts marked.

        Args:
            escape_text: Escapes one text for the format.
            strong: A format string such as ``<b>{}</b>``, applied to the best texts.
        """
        marked = self.texts.map(escape_text)
        if self.best is not None:
            marked = marked.where(~self.best, marked.map(strong.format))
        levels = [marked.index.get_level_values(level).map(escape_text) for level in (0, 1)]
        marked.index = pd.MultiIndex.from_arrays(
            levels,
            names=[None, None],
        )
        return marked.set_axis(
            [escape_text(str(name)) for name in marked.columns],
            axis=1,
        )


def show_briefly(tables: Sequence[Table], folder: Path, console: Console) -> None:
    """Print the first table and those others that fit, and say where the rest is.

    Args:
        tables: The tables, the main one first. They share :data:`MOST_LINES` lines.
        folder: The run folder. The command that prints a table which is left out names it.
        console: Where the tables are printed.
    """
    main, *others = tables
    # What is left out, in words, by the name of the table; the text is empty for a whole table.
    left_out = {main.name: main.show_beginning(console, MOST_LINES)}
    room = MOST_LINES - main.lines(console)
    for table in others:
        lines = table.lines(console)
        if lines > room:
            left_out[table.name] = table.short_title
            continue
        table.show(console)
        room -= lines
    options = {"sites": "--table sites", **{name: f"--measure {name}" for name in MEASURES}}
    for name, words in left_out.items():
        if not words:
            continue
        print_line(console, f"Only in the report page: {words}.")
        if name in options:
            print_line(
                console,
                f"To print it: fedsim report {shlex.quote(str(folder))} {options[name]}",
            )


def _lines_of(console: Console, *parts: Any) -> int:
    """Return the number of lines that some parts take on a console."""
    return sum(len(console.render_lines(part, pad=False)) for part in parts)


def notebook_html(body: str) -> str:
    """Return the HTML of a notebook's cell: a body with fedsim's style sheet.

    The style uses the colours of the notebook, whether they are light or dark.

    Args:
        body: HTML in which everything that users wrote is escaped.
    """
    style = package_text("notebook.css")
    return f'<div class="fedsim"><style>\n{style}</style>\n{body}\n</div>'


def package_text(file: str) -> str:
    """Return the text of a file beside this module."""
    return files(__package__).joinpath(file).read_text(encoding="utf-8")


def _blocks(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield every place with the lines of that place, in the order of the frame."""
    for place, texts in frame.groupby(level=0, sort=False):
        yield str(place), texts.droplevel(0)


def _markdown_table(texts: pd.DataFrame) -> str:
    """Return a frame as a Markdown table, without pandas' ``to_markdown``, which needs tabulate."""
    lines = [["method", *texts.columns], ["---", *["---:"] * texts.shape[1]]]
    lines += [list(line) for line in texts.itertuples()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_text(text: str) -> str:
    """Return a text on one line, escaped for GitHub's Markdown."""
    return re.sub(
        r"([\\`*_{}\[\]<>#|~$&!])",
        r"\\\1",
        " ".join(text.split()),
    )


def latex_text(text: str) -> str:
    """Return a text on one line, escaped for LaTeX."""
    return " ".join(text.split()).translate(_LATEX)


def inert(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame whose texts a spreadsheet does not run as formulas.

    A text that a spreadsheet would take for a formula gets an apostrophe in front. Carriage returns
    become blanks, because a spreadsheet may take them for the end of a line.
    """

    def inert_value(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        text = value.replace("\r", " ")
        if value.startswith(("=", "+", "-", "@", "\t", "\r")):
            return f"'{text}"
        return text

    return frame.map(inert_value)
