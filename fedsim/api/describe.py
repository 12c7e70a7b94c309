"""Describes algorithms from their classes: source, claims and parameters.

A description is shown as one line of a list, or as a page of its own.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from textwrap import shorten
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from rich.console import Console

from fedsim.errors import PluginError, UserError
from fedsim.files import line_of
from fedsim.methods.algorithm import Algorithm, solved_plan
from fedsim.methods.messages import PublicRows, Task
from fedsim.plugins.claims import allowed
from fedsim.plugins.registry import blamed, lookup, name_of, said
from fedsim.privacy.plan import Trust, Unit
from fedsim.words import Printed, plain, print_line, spelled

CLAIM_SHAPE = (64, 10, 10)
"""The dimensions, classes and clients of the task that claims are listed for.

No claim depends on them.
"""
KINDS = ("generators", "classifiers", "not private", "for reproduction")
"""The groups of the list."""
NOTES = """for reproduction: at chance in our tables, as is fedhypevae with form: paper
e, g, c: examples, groups, clients as units; fedsim algorithms NAME: all of one"""
_BOUNDS = {
    "gt": ">",
    "ge": ">=",
    "lt": "<",
    "le": "<=",
    "min_length": "length >=",
    "max_length": "length <=",
}


@dataclass(frozen=True)
class Parameter:
    """A parameter of an algorithm in words.

    Attributes:
        name: its name.
        type: its type.
        default: its default, or ``required``.
        constraint: the bounds of its values; empty without any.
        meaning: a description.
    """

    name: str
    type: str
    default: str
    constraint: str
    meaning: str


@dataclass(frozen=True, repr=False)
class Description(Printed):
    """The description of an algorithm.

    Attributes:
        name: the name as a grid gives it.
        source: the paper or page that it follows.
        text: the docstrings of its module and its class.
        group: one of :data:`KINDS`.
        yields: ``generator`` or ``classifier``.
        place: file, line and import path of the class.
        support: the units of privacy for every claim that it makes under some trust; empty for a
            method that is not private.
        parameters: its parameters.
    """

    name: str
    source: str
    text: str
    group: str
    yields: str
    place: str
    support: Mapping[str, Sequence[str]]
    parameters: Sequence[Parameter]

    def show(self, console: Console) -> None:
        """Print the whole description."""
        lines = [
            self.name,
            f"source: {self.source or 'none given'}",
            f"yields: a {self.yields}",
            f"class: {self.place}",
        ]
        lines += [f"{claim}: {', '.join(units)}" for claim, units in self.support.items()]
        lines += ["", self.text, "", "parameters:"]
        for entry in self.parameters:
            value = ", ".join(filter(None, (f"{entry.type} = {entry.default}", entry.constraint)))
            lines.append(f"  {entry.name}: {value}: {entry.meaning}")
        for line in lines:
            print_line(console, line)

    @property
    def line(self) -> str:
        """The name, the summary, and the claims with the initials of their units, in 80 columns."""
        words = re.sub(
            r"^[\w .,-]*: ", "", self.text.partition("\n\n")[0].partition(". ")[0].partition(";")[0]
        ).rstrip(".")
        claims = ", ".join(
            f"{claim} {''.join(unit[0] for unit in units)}" for claim, units in self.support.items()
        )
        return f"  {self.name:21} {shorten(words, 45, placeholder=' …'):45} {claims}".rstrip()


def describe(name: str | type, where: str = "fedsim algorithms") -> Description:
    """Return the description of an algorithm.

    Args:
        name: its name as a grid gives it, or its class.
        where: the place to name in an error.

    Raises:
        UserError: there is no algorithm of that name.
        PluginError: its code cannot be used.
    """
    if isinstance(name, type):
        name = name_of(name)
    cls = lookup(name, where)
    if cls.generates():
        yields = "generator"
    else:
        yields = "classifier"
    module = inspect.getmodule(cls)
    texts = [inspect.cleandoc(cls.__doc__ or "")]
    # a module of one method says what that is, one of several what they share
    classes = (
        each
        for each in getattr(module, "__dict__", {}).values()
        if isinstance(each, type) and each.__module__ == cls.__module__
    )
    texts.insert(sum("name" in vars(each) for each in classes) > 1, inspect.getdoc(module) or "")
    return Description(
        name=name,
        source=cls.source,
        text="\n\n".join(plain(text) for text in texts if text),
        group="for reproduction"
        if vars(cls).get("for_reproduction")
        else f"{yields}s"
        if cls.private
        else "not private",
        yields=yields,
        place=f"{line_of(cls)} ({cls.__module__}:{cls.__qualname__})",
        support=_support(cls, where),
        parameters=tuple(parameters_of(cls.Params)),
    )


def _support(cls: type[Algorithm], where: str) -> dict[str, list[str]]:
    """Return the units for every claim that the algorithm makes with its default parameters."""
    support: dict[str, list[str]] = {}
    settings: list[tuple[Unit, Trust]] = list(product(get_args(Unit), get_args(Trust)))
    for unit, trust in settings:
        try:
            algorithm = cls(
                cls.Params(),
                Task(*CLAIM_SHAPE, unit, trust, public=PublicRows.made_up(*CLAIM_SHAPE[:2])),
            )
            solved_plan(algorithm, math.inf if cls.private else None, delta=1e-4)
            if cls.private:
                units = support.setdefault(allowed(algorithm.claim(), algorithm), [])
            else:
                units = [unit]
        except PluginError:
            raise
        except UserError:
            continue
        except ValidationError:
            units = support.setdefault("depends on parameters that have no default", [])
        except Exception as error:  # a plug-in may raise anything
            raise PluginError(
                where,
                f"{blamed(error, cls)}: {said(error)}",
                f"expected {cls.__name__} to state its releases",
            ) from error
        if unit in units:
            units += []
        else:
            units += [unit]
    return support


def parameters_of(params: type[BaseModel]) -> Iterator[Parameter]:
    """Yield the parameters of a model in their order.

    Their meanings come from the ``Attributes:`` in the docstrings of the model and of its bases.
    """
    meanings: dict[str, str] = {}
    for cls in reversed(params.__mro__):
        section = (inspect.cleandoc(cls.__doc__ or "") + "\n").partition("Attributes:\n")[2]
        for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n     +.*)*)", section, re.M):
            meanings |= dict.fromkeys(names.split(", "), plain(" ".join(text.split())))
    for name, info in params.model_fields.items():
        if info.is_required():
            default = "required"
        else:
            default = spelled(info.get_default(call_default_factory=True))
        bounds = [
            f"{sign} {getattr(bound, key)}"
            for bound in info.metadata
            for key, sign in _BOUNDS.items()
            if hasattr(bound, key)
        ]
        yield Parameter(
            name, _type(info.annotation), default, ", ".join(bounds), meanings.get(name, "")
        )


def _type(annotation: Any) -> str:
    """Return a type annotation in words."""
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


@dataclass(frozen=True, repr=False)
class Catalogue(Printed):
    """A list of algorithms, one line each, in 80 columns.

    Attributes:
        names: the names of the algorithms.
    """

    names: tuple[str, ...]

    def show(self, console: Console) -> None:
        """Print the algorithms by group; the line of a refused one says why."""
        lines: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for name in self.names:
            try:
                described = describe(name)
                lines[described.group].append(described.line)
            except UserError as error:
                lines.setdefault("refused", []).append(f"  {name}: {error}")
        for text in (
            *(text for kind, members in lines.items() if members for text in (kind, *members, "")),
            *NOTES.splitlines(),
        ):
            print_line(console, text, "bold" if text in lines else None)
