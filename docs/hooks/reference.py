"""Writes the pages of docs/reference from the docstrings and types in the code.

The text above the mark of a page is written by hand. ``python docs/hooks/reference.py`` replaces
the text below the mark.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

import fedsim
from fedsim import methods as for_authors
from fedsim.api.describe import Parameter, describe, parameters_of, plain
from fedsim.commands import app
from fedsim.data.spec import DatasetSpec, EncoderSpec, SplitSpec
from fedsim.grid.models import (
    AlgorithmEntry,
    AuditSpec,
    Evaluation,
    Grid,
    Privacy,
    Published,
    Resources,
    Tune,
)
from fedsim.partition import PartitionSpec
from fedsim.plugins.registry import known, lookup
from fedsim.results.columns import COLUMNS

SECTIONS: dict[Any, str] = {
    Grid: "grid",
    AlgorithmEntry: "algorithms",
    Published: "published",
    DatasetSpec: "dataset",
    SplitSpec: "split",
    EncoderSpec: "encoder",
    PartitionSpec: "partition",
    Evaluation: "evaluation",
    Privacy: "privacy",
    Tune: "tune",
    AuditSpec: "audit",
    Resources: "resources",
}
"""The title of the section of each model that has its own section."""

PAGES = Path(__file__).parents[1] / "reference"
MARK = "<!-- made of the code from here on: python docs/hooks/reference.py -->\n"


def made(name: str) -> str:
    """Return a page as it should be: the text written by hand, the mark, and the generated text."""
    head = (PAGES / f"{name}.md").read_text(encoding="utf-8").partition(MARK)[0]
    generated = re.sub(r"\n{3,}", "\n\n", "\n".join(GENERATED[name]())).strip()
    return f"{head}{MARK}\n{generated}\n"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown, with an empty line after it."""
    head = list(head)
    for cells in (head, ["---"] * len(head), *rows):
        yield (
            "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
        )
    yield ""


def choices(annotation: Any) -> Iterator[str]:
    """Yield the values that a field accepts, and links to the sections of its models.

    Args:
        annotation: the type of the field. Only ``Literal`` types and models yield something.
    """
    if title := SECTIONS.get(annotation):
        yield f"[{title}](#{title})"
    elif get_origin(annotation) is Literal:
        yield from (f"`{value}`" for value in get_args(annotation))
    else:
        for argument in get_args(annotation):
            yield from choices(argument)


def default_words(model: type[BaseModel], entry: Parameter) -> str:
    """Return the default of a field in words."""
    default = model.model_fields[entry.name].get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return "its defaults"
    if isinstance(default, tuple) and default and isinstance(default[0], BaseModel):
        return ", ".join(f"`{model_entry.display}`" for model_entry in default)
    return {"required": "required", "null": "none", "[]": "none"}.get(
        entry.default, f"`{entry.default}`"
    )


def fields_table(model: type[BaseModel]) -> Iterator[str]:
    """Yield a table of every field of a model: its values, its default and its meaning."""
    rows = []
    for entry in parameters_of(model):
        values = ", ".join(
            [*choices(model.model_fields[entry.name].annotation), *filter(None, [entry.constraint])]
        )
        rows.append((f"`{entry.name}`", values, default_words(model, entry), entry.meaning))
    yield from table(("key", "values", "default", "meaning"), rows)


def first_paragraph(text: str) -> str:
    """Return the first paragraph of a docstring, on one line."""
    return " ".join(text.partition("\n\n")[0].split())


def grid_keys() -> Iterator[str]:
    """Yield a section for each part of a grid, with a table of its keys."""
    for model, title in SECTIONS.items():
        yield f"## {title}\n\n{plain(first_paragraph(model.__doc__))}\n"
        yield from fields_table(model)


def commands() -> Iterator[str]:
    """Yield every command with its arguments and options, as cyclopts documents them."""
    text = app.generate_docs(heading_level=1).partition("\n")[2]
    # Where a command has a usage line of its own, cyclopts writes its name twice.
    yield re.sub(r"^fedsim (\w+) \1 ", r"fedsim \1 ", text, flags=re.MULTILINE)


def methods() -> Iterator[str]:
    """Yield a section for every registered method: its source, claims and parameters."""
    for name in known():
        description = describe(name)
        summary = first_paragraph(description.text)
        yield (
            f"## {name}\n\n{summary}\n\nSource: {description.source}. Yields a "
            f"{description.yields}; among {description.group}.\n"
        )
        for claim, units in description.support.items():
            yield f"- {claim}: {', '.join(units)}"
        yield ""
        if description.parameters:
            yield from fields_table(lookup(name, "docs").Params)


def names() -> Iterator[str]:
    """Yield a section for each public name of ``fedsim``, then for each of ``fedsim.methods``."""
    yield "## fedsim\n"
    for name in dir(fedsim):
        if not name.startswith("_"):
            yield from described(f"fedsim.{name}", getattr(fedsim, name))
    yield (
        "## fedsim.methods\n\nFor [authors of methods](../algorithms.md): `from fedsim.methods "
        "import DPSGD, Batch, Server`.\n"
    )
    for name, value in sorted(vars(for_authors).items()):
        if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
            yield from described(name, value)


def described(name: str, thing: Any, level: int = 3, *, value: bool = False) -> Iterator[str]:
    """Yield a name with its signature and docstring.

    For a class, the public methods and properties that it defines itself follow.

    Args:
        name: the name as the heading shows it.
        thing: the class, function or value that has this name.
        level: the level of the heading. Members follow only at level 3.
        value: whether ``thing`` is the function of a property, which is shown without a signature.
    """
    yield f"{'#' * level} `{name}`\n"
    if not value and not issubclass(thing if inspect.isclass(thing) else object, BaseModel):
        # Annotations are texts in quotes, which are removed.
        signature = re.sub(
            r"(: |-> )(['\"])(.*?)\2(?=[,)=]| =|$)", r"\1\3", str(inspect.signature(thing))
        )
        yield f"```python\n{name.rpartition('.')[2]}{signature}\n```\n"
    yield from prose(inspect.getdoc(thing) or "")
    if not inspect.isclass(thing) or level != 3:
        return
    for member_name, member in vars(thing).items():
        # A class method has its function in __func__, and a property in fget.
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if not member_name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            yield from described(
                f"{name}.{member_name}", function, level + 1, value=isinstance(member, property)
            )


def prose(docstring: str) -> Iterator[str]:
    """Yield the lines of a Google-style docstring as Markdown.

    The entries of ``Args`` and similar sections become lists.
    """
    for block in re.split(
        r"\n(?=(?:Args|Attributes|Class attributes|Returns|Raises):\n)", docstring
    ):
        title, _, entries = block.partition(":\n")
        if title in ("Args", "Attributes", "Class attributes", "Raises"):
            yield f"**{title}**\n"
            for entry in re.split(r"\n(?=    \S)", entries.rstrip()):
                key, _, words = " ".join(entry.split()).partition(": ")
                yield f"- `{key}`: {plain(words)}"
            yield ""
        else:
            yield (
                plain(
                    inspect.cleandoc(f"**Returns**\n\n{entries}" if title == "Returns" else block)
                )
                + "\n"
            )


GENERATED: dict[str, Callable[[], Iterable[str]]] = {
    "api": names,
    "grid": grid_keys,
    "commands": commands,
    "columns": lambda: table(
        ("column", "meaning"), ((f"`{name}`", column.words) for name, column in COLUMNS.items())
    ),
    "methods": methods,
}
"""The function that yields the lines below the mark of each page."""

if __name__ == "__main__":
    for page in GENERATED:
        (PAGES / f"{page}.md").write_text(made(page), encoding="utf-8")
