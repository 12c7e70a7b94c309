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
"""The dimensions, classes and clients of the task for which claims are listed.

No claim depends on them.
"""
KINDS = ("generators", "classifiers", "not private", "for reproduction")
"""The groups of algorithms that a :class:`Catalogue` prints, in this order."""
NOTES = """\
"for reproduction": these methods do not beat chance in our tables. The method
fedhypevae with form: paper does not beat chance either.
e, g, c: the privacy unit is one example, one group or one client.
To describe one method: fedsim algorithms NAME"""
_COMMAND = "fedsim algorithms"
"""The command that an error names as its place."""
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
        name: the name of the parameter.
        type: its type, such as ``int``.
        default: its default value as a grid file has it, or ``required``.
        constraint: the bounds of its values, such as ``>= 1``; empty if there are none.
        meaning: its description in the docstring; empty if there is none.
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
        support: every claim that it makes, with the units of privacy for which it makes it under
            at least one kind of trust; empty for a method that is not private.
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
        for claim, units in self.support.items():
            lines.append(f"{claim}: {', '.join(units)}")
        lines += ["", self.text, "", "parameters:"]
        for entry in self.parameters:
            value = f"{entry.type} = {entry.default}"
            if entry.constraint:
                value += f", {entry.constraint}"
            lines.append(f"  {entry.name}: {value}: {entry.meaning}")
        print_line(console, "\n".join(lines))

    @property
    def line(self) -> str:
        """The name, the summary, and the claims with the initials of their units, in 80 columns."""
        # The first sentence, without a name and a colon before it.
        first_sentence = re.split(r"\n\n|\. |;", self.text, maxsplit=1)[0]
        summary = re.sub(r"^[\w .,-]*: ", "", first_sentence).rstrip(".")
        claims = []
        for claim, units in self.support.items():
            initials = "".join(unit[0] for unit in units)
            claims.append(f"{claim} {initials}")
        words = shorten(summary, 45, placeholder=" …")
        return f"  {self.name:21} {words:45} {', '.join(claims)}".rstrip()


def describe(name: str | type) -> Description:
    """Return the description of an algorithm.

    Args:
        name: its name as a grid gives it, or its class.

    Raises:
        UserError: there is no algorithm of that name.
        PluginError: the code of the algorithm cannot be used.
    """
    if isinstance(name, type):
        name = name_of(name)
    cls = lookup(name, _COMMAND)
    yields = "generator" if cls.generates() else "classifier"
    group = f"{yields}s"
    if not cls.private:
        group = "not private"
    # This looks only at the class itself: subclasses do not inherit `for_reproduction`.
    if vars(cls).get("for_reproduction"):
        group = "for reproduction"
    module = inspect.getmodule(cls)
    texts = [inspect.getdoc(module) or "", inspect.cleandoc(cls.__doc__ or "")]
    # Registration gives every algorithm the attribute `name`.
    algorithms_of_module = [
        member
        for member in getattr(module, "__dict__", {}).values()
        if isinstance(member, type)
        and member.__module__ == cls.__module__
        and "name" in vars(member)
    ]
    if len(algorithms_of_module) > 1:
        # The docstring of such a module is about all its algorithms, so it comes second.
        texts.reverse()
    return Description(
        name=name,
        source=cls.source,
        text="\n\n".join(plain(text) for text in texts if text),
        group=group,
        yields=yields,
        place=f"{line_of(cls)} ({cls.__module__}:{cls.__qualname__})",
        support=_support(cls),
        parameters=tuple(parameters_of(cls.Params)),
    )


def _support(cls: type[Algorithm]) -> dict[str, list[str]]:
    """Return the claims that an algorithm makes with its default parameters.

    Every combination of unit and trust is tried.

    Args:
        cls: the class of the algorithm.

    Returns:
        By claim, the units for which the algorithm makes it; empty if it is not private.

    Raises:
        PluginError: the code of the algorithm raised an error.
    """
    support: dict[str, list[str]] = {}
    public = PublicRows.made_up(*CLAIM_SHAPE[:2])
    for unit, trust in product(get_args(Unit), get_args(Trust)):
        try:
            task = Task(*CLAIM_SHAPE, unit, trust, public=public)
            algorithm = cls(cls.Params(), task)
            # The plan only shows whether the setting is refused. For an infinite ε, no noise has to
            # be searched.
            solved_plan(algorithm, math.inf if cls.private else None, delta=1e-4)
            claim: str = allowed(algorithm.claim(), algorithm)
        except PluginError:  # It is a UserError, too, but a fault of the code.
            raise
        except UserError:  # The algorithm does not support this unit and trust.
            continue
        except ValidationError:
            claim = "depends on parameters that have no default"
        except Exception as error:  # A plug-in may raise anything.
            raise PluginError(
                _COMMAND,
                f"{blamed(error, cls)}: {cls.__name__} raised {said(error)}",
                "correct the code at this line, so that fedsim can make a privacy plan",
            ) from error
        if not cls.private:  # It makes no claim, but its code must still work.
            continue
        units = support.setdefault(claim, [])
        if unit not in units:
            units.append(unit)
    return support


def parameters_of(params: type[BaseModel]) -> Iterator[Parameter]:
    """Yield the parameters of a model in their order.

    Their meanings come from the ``Attributes:`` in the docstrings of the model and of its bases.
    """
    meanings: dict[str, str] = {}
    for cls in reversed(params.__mro__):
        section = (inspect.cleandoc(cls.__doc__ or "") + "\n").partition("Attributes:\n")[2]
        # An entry has names, a colon and a text. Further lines of the text are indented more.
        for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n     +.*)*)", section, re.M):
            meaning = plain(" ".join(text.split()))
            meanings |= dict.fromkeys(names.split(", "), meaning)
    for name, info in params.model_fields.items():
        default = "required"
        if not info.is_required():
            default = spelled(info.get_default(call_default_factory=True))
        bounds = []
        for bound in info.metadata:
            for key, sign in _BOUNDS.items():
                if hasattr(bound, key):
                    bounds.append(f"{sign} {getattr(bound, key)}")
        yield Parameter(
            name,
            _type(info.annotation),
            default,
            ", ".join(bounds),
            meanings.get(name, ""),
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
        """Print the algorithms by group; one that cannot be described is listed with its error."""
        lines: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for name in self.names:
            try:
                description = describe(name)
                lines[description.group].append(description.line)
            except UserError as error:
                lines.setdefault("refused", []).append(f"  {name}: {error}")
        for group, members in lines.items():
            if members:
                print_line(console, group, "bold")
                print_line(console, "\n".join([*members, ""]))
        print_line(console, NOTES)
