"""The ``fedsim`` command: every subcommand is a function of :mod:`fedsim.api`, by its signature and
docstring.
"""

from __future__ import annotations

import atexit
import gc
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from typer.core import TyperCommand

from fedsim.api.functions import account, algorithms, audit, bench, check, embed
from fedsim.api.new import new
from fedsim.api.run import Run, board, load
from fedsim.errors import UserError
from fedsim.files import unread
from fedsim.interrupts import INTERRUPTED, interrupts
from fedsim.plugins.registry import find_in_working_folder
from fedsim.words import Printed, plain, plain_console, print_line, wide_console

COMMANDS: dict[str, tuple[Callable[..., Any], ...]] = {
    "Run a grid": (bench, Run.report, board),
    "Methods": (algorithms, new, check, audit),
    "Privacy": (account, Run.verify, Run.statement),
    "Rows": (embed, Run.synth, Run.release),
}
"""The functions that are commands; a method of a run takes its folder first."""
OTHERS = (Run.synth, Run.release, Run.verify, Run.statement, audit, board)
"""Commands that may read what somebody else made: they run code of the working folder only where
plug-ins are trusted.
"""

NARROWEST = 100
"""Columns that a command's output has at least, where it does not fit itself to a terminal."""
TRUTH_VALUES = ("true", "false", "yes", "no", "on", "off")
"""What some write behind a switch, which takes no value."""

app = typer.Typer(
    help="Federated generative algorithms side by side, under identical partitions and honest "
    "differential privacy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class _Command(TyperCommand):
    """A command that says which switch is given a value, where click calls the value an argument
    too many, or takes it for one.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words behind the command's name."""
        switches = {
            option
            for parameter in self.params
            for option in parameter.opts
            if getattr(parameter, "is_flag", False)
        }
        for word, following in pairwise([*args, ""]):
            option, equals, value = word.partition("=")
            value = value if equals else following
            if option in switches and value.lower() in TRUTH_VALUES:
                raise UserError(
                    option,
                    f"is followed by '{value}', and takes no value",
                    f"give {option} alone, or leave it out",
                )
        return super().parse_args(ctx, args)


def _version(asked: bool) -> None:
    """Print the version, and the git revision in a checkout: what a paper cites."""
    if asked:
        from fedsim import __version__
        from fedsim.runs.manifest import revision

        at = revision()
        print_line(plain_console(), f"fedsim {__version__}" + (f", revision {at}" if at else ""))
        raise typer.Exit


@app.callback()
def fedsim(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print version and revision."
        ),
    ] = False,
) -> None:
    """A subcommand a task."""


def add(function: Callable[..., Any], panel: str) -> None:
    """Make a function a command: its positional parameters are arguments, the others options, its
    docstring the help.
    """
    of_run = function.__qualname__.startswith("Run.")
    own = {name: p for name, p in inspect.signature(function).parameters.items() if name != "self"}
    if of_run:
        keyword = inspect.Parameter.KEYWORD_ONLY
        own = {
            "run": inspect.Parameter(
                "run", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="Path"
            ),
            **own,
        }
        if function in OTHERS:
            own["trust_plugin"] = inspect.Parameter(
                "trust_plugin", keyword, default=False, annotation="bool"
            )
    kinds = {
        name: kind
        for name, p in own.items()
        if (kind := kind_of(eval(str(p.annotation), function.__globals__))) is not None
    }
    text, helps = _sections(inspect.getdoc(function) or "")
    helps = {
        "run": "a run folder, such as runs/quickstart.",
        "trust_plugin": "run the code of plug-ins that the folder names.",
    } | helps
    options = {
        name: _option(name, kind)
        for name, kind in kinds.items()
        if own[name].kind is inspect.Parameter.KEYWORD_ONLY
    }

    def command(**given: Any) -> None:
        values = {name: given[name] for name in kinds}
        for name in (name for name in kinds if f"{name}_option" in given):
            argument, option = values[name], given[f"{name}_option"]
            if argument is not None and option is not None:
                raise UserError(
                    name.upper(), f"{argument} and --{name} {option} are both given", "give one"
                )
            values[name] = option if argument is None else argument
            if values[name] is None and own[name].default is inspect.Parameter.empty:
                raise UserError(name.upper(), "is missing", "see --help")
        values = {
            name: value
            for name, value in values.items()
            if value is not None or own[name].default is None
        }
        rest = next(
            (
                values.pop(name, ())
                for name, p in own.items()
                if p.kind is inspect.Parameter.VAR_POSITIONAL
            ),
            (),
        )
        trusted = values.pop("trust_plugin", False) if of_run else values.get("trust_plugin", False)
        if function not in OTHERS or trusted:
            find_in_working_folder()
        try:
            made = (
                function(load(values.pop("run"), trust_plugin=trusted), *rest, **values)
                if of_run
                else function(*rest, **values)
            )
        except UserError as error:
            raise _told(error, options) from error
        except KeyboardInterrupt as interruption:
            if not interruption.args:  # whoever has words of its own has printed them
                print_line(plain_console(), "interrupted")
            raise typer.Exit(INTERRUPTED) from None
        if isinstance(made, Printed) and not isinstance(
            made, Run
        ):  # of which a bench prints the tables itself
            console = plain_console()
            known_width = console.is_terminal or "COLUMNS" in os.environ
            made.show(
                console if made.fits_width and known_width else wide_console(console, NARROWEST)
            )
        elif isinstance(made, str):
            typer.echo(made)
        raise typer.Exit(int(getattr(made, "code", 0)))

    parameters = []
    for name, kind in kinds.items():
        default, words = own[name].default, _sentence(helps.get(name, ""))
        if name in options:
            given: dict[str, Any] = {"parser": _path, "metavar": "PATH"} if kind is Path else {}
            how, default = (
                typer.Option(options[name], help=words, **given),
                default or None if get_origin(kind) is list else default,
            )
        elif get_origin(kind) is list or own[name].kind is inspect.Parameter.VAR_POSITIONAL:
            how = typer.Argument(metavar=f"{name.upper()}...", help=words)
            kind, default = (
                list.__class_getitem__(kind) if get_origin(kind) is not list else kind,
                [] if name == "beside" else default,
            )
        else:
            option = _option(name, kind)
            how, default = (
                typer.Argument(metavar=name.upper(), help=f"{words} Also as {option}."),
                None,
            )
            parameters.append(
                _parameter(
                    f"{name}_option",
                    Annotated[kind | None, typer.Option(option, hidden=True)],
                    None,
                )
            )
        parameters.append(
            _parameter(
                name,
                Annotated[kind if kind is bool or default is not None else kind | None, how],
                default,
            )
        )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    app.command(function.__name__, cls=_Command, help=text, rich_help_panel=panel)(command)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
    )


def kind_of(annotation: Any) -> Any:
    """What a command line reads for a parameter: of several types the first that has words; None
    where none has.
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return next(
            (
                kind
                for each in inner
                if each is not NoneType and (kind := kind_of(each)) is not None
            ),
            None,
        )
    if origin in (Sequence, Iterable, list):
        return None if (kind := kind_of(inner[0])) is None else list.__class_getitem__(kind)
    return (
        annotation
        if annotation in (bool, int, float, str, Path) or origin in (Literal, tuple)
        else None
    )


def _path(text: str) -> Path:
    """A path; an empty text, as an empty variable of a shell is, names none."""
    if not text:
        raise typer.BadParameter("is empty; pass a path, or omit the option")
    return Path(text)


def _option(name: str, kind: Any) -> str:
    """``--max-parallel``; one that is given as often as needed is in the singular."""
    name = name.strip("_").replace("_", "-")
    return f"--{name.removesuffix('s') if get_origin(kind) is list else name}"


def _sections(docstring: str) -> tuple[str, dict[str, str]]:
    """A docstring's text, and what its ``Args`` say of each parameter."""
    text, _, rest = docstring.partition("Args:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", re.split(r"\n\n\w+:\n", rest)[0], re.M)
    return plain(re.split(r"\n\n(?:Returns|Raises):\n", text)[0]).strip(), {
        name: plain(" ".join(words.split())) for name, words in entries
    }


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _told(error: UserError, options: Mapping[str, str]) -> UserError:
    """The same mistake with options in place of a function's parameters: at its place, and in
    backquotes elsewhere.
    """

    def named(text: str) -> str:
        return re.sub(r"`(\w+)(?:=True)?`", lambda match: options.get(match[1], match[0]), text)

    head = re.match(r"\w*", error.where)
    place = head[0] if head else ""
    where = options.get(place, place) + error.where[len(place) :]
    return type(error)(named(where), named(error.what), named(error.hint))


for _panel, _functions in COMMANDS.items():
    for _function in _functions:
        add(_function, _panel)


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2; an interruption
    is 130.
    """
    # a tenth as many searches for garbage in all there is, and none at the end: a fifth of what
    # torch and Ray take to load
    gc.set_threshold(*gc.get_threshold()[:2], 100)
    atexit.register(gc.freeze)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, TextIOWrapper
        ):  # what its encoding lacks, such as ε, is a question mark and no reason to end
            stream.reconfigure(errors="replace")
    try:
        with interrupts():
            app()
    except UserError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except OSError as error:  # a file or folder that no earlier check covers
        if isinstance(error, ConnectionError | TimeoutError):
            raise
        _complain(str(UserError(str(error.filename or ""), f"cannot be used ({unread(error)})")))
        sys.exit(2)


def _complain(text: str) -> None:
    print_line(plain_console(stderr=True), f"fedsim: {text}", "red")
