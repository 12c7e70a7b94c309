"""What an algorithm is, read off its class: source, claims, parameters; as a line among others and as a page of its own."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from textwrap import shorten
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsim.errors import PluginError, UserError
from fedsim.methods.algorithm import Algorithm, solved_plan
from fedsim.methods.messages import PublicRows, Task
from fedsim.plugins.claims import allowed
from fedsim.plugins.registry import blamed, line_of, lookup, name_of, said
from fedsim.privacy.plan import Trust, Unit
from fedsim.words import Printed, plain, print_line, spelled

CLAIM_SHAPE = (64, 10, 10)
"""Dimensions, classes and clients of the task for which claims are listed; no claim depends on them."""
CLAIM_OF_NONE = "not private"
KINDS = ("generators", "classifiers", "not private", "for reproduction")
"""The groups of the list."""
NOTES = """for reproduction: at chance in our tables, as is fedhypevae with form: paper
e, g, c: examples, groups, clients as units; fedsim algorithms NAME: all of one"""
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "min_length": "length >=", "max_length": "length <="}


@dataclass(frozen=True)
class Parameter:
    """A parameter as people read it; every attribute is a text."""

    name: str
    type: str
    default: str
    constraint: str
    meaning: str


@dataclass(frozen=True, repr=False)
class Description(Printed):
    """An algorithm as people read it.

    Attributes:
        name: as a grid would give it.
        source: the paper or page that it follows.
        text: docstrings of the class and of its module.
        group: one of :data:`KINDS`.
        yields: ``generator`` or ``classifier``.
        place: file, line and import path of the class.
        claims: by (unit, trust), the claim, or why the combination is refused.
        refused: the combinations of ``claims`` that are refused.
        parameters: with defaults.
    """

    name: str
    source: str
    text: str
    group: str
    yields: str
    place: str
    claims: Mapping[tuple[Unit, Trust], str]
    refused: frozenset[tuple[Unit, Trust]]
    parameters: tuple[Parameter, ...]

    def show(self, console: Console) -> None:
        """Print everything about it, from top to bottom."""
        facts = {"source": self.source or "none given", "yields": f"a {self.yields}", "class": self.place}
        for text in (self.name, *(f"{fact + ':':8}{text}" for fact, text in facts.items()), f"\n{self.text}\n"):
            console.print(Text(text))
        claims = Table("unit", "trust", "claim", title="claims", title_justify="left", show_edge=False)
        for setting, claim in self.claims.items():
            claims.add_row(*setting, Text(f"– ({claim})" if setting in self.refused else claim))
        console.print(claims, "")
        parameters = Table(title="parameters", title_justify="left", show_edge=False)
        for column in ("name", "type", "default", "must be", "what"):
            parameters.add_column(column, overflow="fold", no_wrap=column == "name")
        for entry in self.parameters:
            parameters.add_row(*(Text(text) for text in (entry.name, entry.type, entry.default, entry.constraint, entry.meaning)))
        console.print(parameters)

    def support(self) -> dict[str, list[str]]:
        """By claim, the units for which it is made under some trust; nothing of a method that is not private."""
        units: dict[str, list[str]] = {}
        for (unit, trust), claim in self.claims.items():
            if claim != CLAIM_OF_NONE and (unit, trust) not in self.refused and unit not in units.setdefault(claim, []):
                units[claim].append(unit)
        return units

    @property
    def line(self) -> str:
        """Its name, what it is, and its claims with the initials of their units, in 80 columns."""
        words = re.sub(r"^[\w .,-]*: ", "", self.text.partition("\n\n")[0].partition(". ")[0].partition(";")[0]).rstrip(".")
        claims = ", ".join(f"{claim} {''.join(unit[0] for unit in units)}" for claim, units in self.support().items())
        return f"  {self.name:21} {shorten(words, 45, placeholder=' …'):45} {claims}".rstrip()


def describe(name: str | type, where: str = "fedsim algorithms") -> Description:
    """Describe an algorithm, by its name as a grid gives it or by its class; ``where`` is the place to name in an error."""
    name = name_of(name) if isinstance(name, type) else name
    cls = lookup(name, where)
    claims, refused = _claims(cls, where)
    yields = "generator" if cls.generates() else "classifier"
    module, texts = inspect.getmodule(cls), [inspect.cleandoc(cls.__doc__ or "")]
    # a module of one method says what that is, one of several what they share
    classes = (each for each in getattr(module, "__dict__", {}).values() if isinstance(each, type) and each.__module__ == cls.__module__)
    texts.insert(sum("name" in vars(each) for each in classes) > 1, inspect.getdoc(module) or "")
    return Description(
        name=name,
        source=cls.source,
        text="\n\n".join(_paragraphs(plain(text)) for text in texts if text),
        group="for reproduction" if vars(cls).get("for_reproduction") else f"{yields}s" if cls.private else "not private",
        yields=yields,
        place=f"{line_of(cls)} ({cls.__module__}:{cls.__qualname__})",
        claims=claims,
        refused=refused,
        parameters=tuple(parameters_of(cls.Params)),
    )


def _claims(cls: type[Algorithm], where: str) -> tuple[dict[tuple[Unit, Trust], str], frozenset[tuple[Unit, Trust]]]:
    """What the algorithm with its defaults claims for every unit and trust, and which of them it refuses."""
    claims: dict[tuple[Unit, Trust], str] = {}
    refused = set()
    settings: list[tuple[Unit, Trust]] = list(product(get_args(Unit), get_args(Trust)))
    for unit, trust in settings:
        try:
            algorithm = cls(cls.Params(), Task(*CLAIM_SHAPE, unit, trust, public=PublicRows.made_up(*CLAIM_SHAPE[:2])))
            solved_plan(algorithm, math.inf if cls.private else None, delta=1e-4)
            claims[unit, trust] = allowed(algorithm.claim(), algorithm) if cls.private else CLAIM_OF_NONE
        except PluginError:
            raise
        except UserError as error:
            claims[unit, trust] = error.what
            refused.add((unit, trust))
        except ValidationError:
            claims[unit, trust] = "depends on parameters that have no default"
        except Exception as error:  # a plug-in may raise anything
            raise PluginError(where, f"{blamed(error, cls)}: {said(error)}", f"expected {cls.__name__} to state its releases") from error
    return claims, frozenset(refused)


def parameters_of(params: type[BaseModel]) -> Iterator[Parameter]:
    """The fields of a model, in their order."""
    meanings = meanings_of(params)
    for name, info in params.model_fields.items():
        default = "required" if info.is_required() else spelled(info.get_default(call_default_factory=True))
        yield Parameter(name, _type(info.annotation), default, _constraint(info), meanings.get(name, ""))


def meanings_of(params: type[BaseModel]) -> dict[str, str]:
    """Sentences of the ``Attributes:`` sections of a model by name; those of a subclass replace its base's."""
    meanings: dict[str, str] = {}
    for cls in reversed(params.__mro__):
        section = (inspect.cleandoc(cls.__doc__ or "") + "\n").partition("Attributes:\n")[2]
        for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n     +.*)*)", section, re.M):
            meanings |= dict.fromkeys(names.split(", "), plain(" ".join(text.split())))
    return meanings


def _paragraphs(text: str) -> str:
    """Without the line breaks within paragraphs."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    return annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation).replace("typing.", "")


def _constraint(info: FieldInfo) -> str:
    bounds = [(sign, getattr(bound, key)) for bound in info.metadata for key, sign in _BOUNDS.items() if hasattr(bound, key)]
    return ", ".join(f"{sign} {bound}" for sign, bound in bounds)


@dataclass(frozen=True, repr=False)
class Catalogue(Printed):
    """Algorithms by name, a line each, in 80 columns."""

    names: tuple[str, ...]

    def show(self, console: Console) -> None:
        """Print them by kind; why one is refused stands in its line."""
        lines: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for name in self.names:
            try:
                described = describe(name)
                lines[described.group].append(described.line)
            except UserError as error:
                lines.setdefault("refused", []).append(f"  {name}: {error}")
        for text in (*(text for kind, members in lines.items() if members for text in (kind, *members, "")), *NOTES.splitlines()):
            print_line(console, text, "bold" if text in lines else None)
