"""The reference, made from code as the site is built: a page has a comment ``<!-- generated: NAME -->`` where it belongs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.cli import get_docs_for_click

import fedsim
from fedsim.api.describe import Parameter, describe, meanings_of, parameters_of, plain
from fedsim.cli import app
from fedsim.data.spec import DatasetSpec, EncoderSpec, SplitSpec
from fedsim.grid.models import AlgorithmEntry, AuditSpec, Evaluation, Grid, Privacy, Resources, Tune
from fedsim.methods import face
from fedsim.partition import PartitionSpec
from fedsim.plugins.registry import known, lookup
from fedsim.results.columns import COLUMNS


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put what is generated in the place of its comment."""
    return re.sub(r"<!-- generated: (.*) -->", lambda mark: "\n".join(GENERATED[mark[1]]()), markdown)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A table in Markdown, with an empty line after it."""
    head = list(head)
    for cells in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
    yield ""


SECTIONS: dict[type[BaseModel], str] = {
    Grid: "grid",
    AlgorithmEntry: "algorithms",
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
"""The models that have a section of their own, and its title."""


def value_words(annotation: Any) -> str:
    """The values of a field, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(value_words(argument) for argument in arguments if argument is not type(None)))
    if origin is tuple:
        return f"list of {value_words(arguments[0])}" if arguments[-1] is ... else f"{len(arguments)} × {value_words(arguments[0])}"
    if origin is Annotated:
        return value_words(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation not in SECTIONS:  # a mapping of a key or two
            return " and ".join(f"`{{{name}: …}}`" for name in annotation.model_fields)
        return f"[{SECTIONS[annotation]}](#{SECTIONS[annotation]})"
    words = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path", dict: "mapping"}
    return words.get(origin or annotation, "value")


def default_words(field: FieldInfo, entry: Parameter) -> str:
    """The default of a field; of a model, only what is not its own default."""
    default = field.get_default(call_default_factory=True)
    if default is None or default == ():
        return "none"
    if isinstance(default, BaseModel):
        return "its defaults"
    if isinstance(default, tuple) and isinstance(default[0], BaseModel):
        return ", ".join(f"`{model.display}`" for model in default)
    return "required" if field.is_required() else f"`{entry.default}`"


def section(model: type[BaseModel]) -> Iterator[str]:
    """A model's summary and its fields; those of its kinds after them."""
    yield f"## {SECTIONS[model]}\n\n{plain((model.__doc__ or '').partition(chr(10))[0])}\n"
    yield from fields_table(model)


def fields_table(model: type[BaseModel]) -> Iterator[str]:
    """Every field of a model: its values, its default and its meaning."""
    rows = []
    for entry in parameters_of(model):
        field = model.model_fields[entry.name]
        values = f"{value_words(field.annotation)} {entry.constraint}".strip()
        rows.append((f"`{entry.name}`", values, default_words(field, entry), entry.meaning))
    yield from table(("key", "values", "default", "meaning"), rows)


def grid_keys() -> Iterator[str]:
    """Every key of a grid, from the models that read it."""
    return (line for model in SECTIONS for line in section(model))


def commands() -> Iterator[str]:
    """Every command with its arguments and options, by typer."""
    command = typer.main.get_command(app)
    yield get_docs_for_click(obj=command, ctx=typer.Context(command), name="fedsim").partition("\n")[2]


def columns() -> Iterator[str]:
    """Every column of a row."""
    yield from table(("column", "kind", "meaning"), ((f"`{name}`", column.kind.value, column.words) for name, column in COLUMNS.items()))


def meaning_table(described: type) -> Iterator[str]:
    """The attributes of a class and what they mean."""
    yield from table(("key", "meaning"), ((f"`{name}`", meaning) for name, meaning in meanings_of(described).items()))


def methods() -> Iterator[str]:
    """Every registered method: source, claims, parameters."""
    for name in known():
        described = describe(name)
        summary = described.text.partition("\n")[0]
        yield f"## {name}\n\n{summary}\n\nSource: {described.source}. Yields a {described.yields}; among {described.group}.\n"
        yield from (*(f"- {claim}: {', '.join(units)}" for claim, units in described.support().items()), "")
        if described.parameters:
            yield from fields_table(lookup(name, "docs").Params)


def names_for_users() -> Iterator[str]:
    """What `fedsim` offers, for mkdocstrings."""
    return (f"::: fedsim.{name}" for name in dir(fedsim) if not name.startswith("_"))


def names_for_authors() -> Iterator[str]:
    """What `fedsim.methods` offers, for mkdocstrings."""
    return (f"::: fedsim.methods.face.{name}" for name in face.__all__)


GENERATED: dict[str, Callable[[], Iterator[str]]] = {
    "keys of a grid": grid_keys,
    "commands": commands,
    "columns": columns,
    "methods": methods,
    "names for users": names_for_users,
    "names for authors": names_for_authors,
}
"""What a page may have generated, by the name in its comment."""
