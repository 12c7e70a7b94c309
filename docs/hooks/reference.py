"""The reference, made from code as the site is built: a page has a comment ``<!-- generated: NAME -->`` where it belongs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args, get_origin

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from typer.cli import get_docs_for_click

import fedsim
from fedsim import methods as for_authors
from fedsim.api.describe import Parameter, describe, parameters_of, plain
from fedsim.cli import app
from fedsim.data.spec import DatasetSpec, EncoderSpec, SplitSpec
from fedsim.grid.models import AlgorithmEntry, AuditSpec, Evaluation, Grid, Privacy, Resources, Tune
from fedsim.partition import PartitionSpec
from fedsim.plugins.registry import known, lookup
from fedsim.results.columns import COLUMNS

SECTIONS: dict[Any, str] = {
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


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put what is generated in the place of its comment."""
    return re.sub(r"<!-- generated: (.*) -->", lambda mark: "\n".join(GENERATED[mark[1]]()), markdown)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A table in Markdown, with an empty line after it."""
    head = list(head)
    for cells in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
    yield ""


def choices(annotation: Any) -> Iterator[str]:
    """The words that a field takes, and the sections of its models."""
    if title := SECTIONS.get(annotation):
        yield f"[{title}](#{title})"
    elif get_origin(annotation) is Literal:
        yield from (f"`{value}`" for value in get_args(annotation))
    else:
        for argument in get_args(annotation):
            yield from choices(argument)


def default_words(model: type[BaseModel], entry: Parameter) -> str:
    """The default of a field."""
    default = model.model_fields[entry.name].get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return "its defaults"
    if isinstance(default, tuple) and default and isinstance(default[0], BaseModel):
        return ", ".join(f"`{one.display}`" for one in default)
    return {"required": "required", "null": "none", "[]": "none"}.get(entry.default, f"`{entry.default}`")


def fields_table(model: type[BaseModel]) -> Iterator[str]:
    """Every field of a model: its values, its default and its meaning."""
    rows = []
    for entry in parameters_of(model):
        values = ", ".join([*choices(model.model_fields[entry.name].annotation), *filter(None, [entry.constraint])])
        rows.append((f"`{entry.name}`", values, default_words(model, entry), entry.meaning))
    yield from table(("key", "values", "default", "meaning"), rows)


def grid_keys() -> Iterator[str]:
    """Every key of a grid, from the models that read it."""
    for model, title in SECTIONS.items():
        yield f"## {title}\n\n{plain(model.__doc__.partition(chr(10))[0])}\n"
        yield from fields_table(model)


def commands() -> Iterator[str]:
    """Every command with its arguments and options, by typer."""
    command = typer.main.get_command(app)
    yield get_docs_for_click(obj=command, ctx=typer.Context(command), name="fedsim").partition("\n")[2]


def methods() -> Iterator[str]:
    """Every registered method: source, claims, parameters."""
    for name in known():
        described = describe(name)
        summary = described.text.partition("\n")[0]
        yield f"## {name}\n\n{summary}\n\nSource: {described.source}. Yields a {described.yields}; among {described.group}.\n"
        yield from (*(f"- {claim}: {', '.join(units)}" for claim, units in described.support.items()), "")
        if described.parameters:
            yield from fields_table(lookup(name, "docs").Params)


GENERATED: dict[str, Callable[[], Iterable[str]]] = {
    "keys of a grid": grid_keys,
    "commands": commands,
    "columns": lambda: table(("column", "meaning"), ((f"`{name}`", one.words) for name, one in COLUMNS.items())),
    "methods": methods,
    "names for users": lambda: (f"::: fedsim.{name}" for name in dir(fedsim) if not name.startswith("_")),
    "names for authors": lambda: (
        f"::: fedsim.methods.{name}"
        for name, value in sorted(vars(for_authors).items())
        if not name.startswith("_") and not getattr(value, "__name__", "").startswith("fedsim.methods.")
    ),
}
"""What a page may have generated, by the name in its comment."""
