"""The ``fedsim`` command: it reads the command line, runs a command and prints what it returns.

A user's mistake is one line on standard error with exit code 2. An interruption has exit code 130.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import Any

from cyclopts import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnusedCliTokensError,
)

from fedsim.commands import app
from fedsim.errors import UserError, nearest
from fedsim.files import unread
from fedsim.interrupts import INTERRUPTED, interrupts
from fedsim.words import Printed, plain_console, print_line, wide_console

NAMES = {"params": "--param", "with_": "--with"}
"""The option of each parameter that has another name than its option."""
TABLE_WIDTH = 100
"""The least width of output that does not adapt to the terminal, in characters."""
TRUTH_VALUES = ("true", "false", "yes", "no", "on", "off")
"""Values that some users write after an option that takes none."""


def main() -> None:
    """Run the command line of this process, and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A character that the encoding lacks, such as ε, becomes a question mark.
            stream.reconfigure(errors="replace")
    try:
        with interrupts():
            sys.exit(run(sys.argv[1:]))
    except UserError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except OSError as error:  # a file or folder that no earlier check covers
        if isinstance(error, ConnectionError | TimeoutError):
            raise  # it is not about a file
        _complain(str(UserError(str(error.filename or ""), f"cannot be used ({unread(error)})")))
        sys.exit(2)


def run(arguments: list[str]) -> int:
    """Run a command line, print its result, and return the exit code.

    Raises:
        UserError: the command line or a value in it is wrong.
    """
    app.version = _version
    command, bound, _ = _parsed(arguments)
    try:
        result = command(*bound.args, **bound.kwargs)
    except UserError as error:
        raise _in_option_names(error, command) from error
    except KeyboardInterrupt as interruption:
        if not interruption.args:  # With arguments, the code that raised it printed a message.
            print_line(plain_console(), "interrupted; run the same command again")
        return INTERRUPTED
    try:
        return _print(result)
    except BrokenPipeError:
        # What reads the output, such as `head`, wants no more. Python flushes once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _version() -> str:
    """Return the version, and the git revision in a checkout, as a paper cites them."""
    from fedsim import __version__
    from fedsim.runs.manifest import revision

    version = f"fedsim {__version__}"
    if commit := revision():
        version += f", revision {commit}"
    return version


def _parsed(arguments: list[str]) -> tuple[Callable[..., Any], inspect.BoundArguments, Any]:
    """Return the command that the arguments name, the values of its parameters, and a third value.

    The third value lists the parameters that cyclopts ignored. No command has any.
    """
    try:
        return app.parse_args(
            arguments, print_error=False, exit_on_error=False, help_on_error=False
        )
    except CycloptsError as error:
        command = " ".join(error.command_chain or ())
        hint = f"see fedsim {command} --help".replace("  ", " ")
        raise UserError(command, _mistake(error), hint) from error


def _mistake(error: CycloptsError) -> str:
    """Return what is wrong with a command line, in one sentence."""
    if isinstance(error, UnknownCommandError) and error.unused_tokens:
        name = error.unused_tokens[0]
        commands = [command for command in app if not command.startswith("-")]
        return f"there is no command '{name}'; {nearest(name, commands)}"
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        argument = error.unused_tokens[0]
        words = f"'{argument}' is one argument too many"
        if argument.lower() in TRUTH_VALUES:
            words += "; an option such as --yes takes no value"
        return words
    if isinstance(error, CoercionError) and error.token and error.target_type in (int, float):
        return f"{error.token.keyword}: '{error.token.value}' is not a number"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        return f"a value is missing for {' or '.join(error.argument.names)}"
    return " ".join(str(error).split()).rstrip(".")


def _print(result: Any) -> int:
    """Print what a command returned, and return its exit code."""
    if isinstance(result, int):
        return result
    if isinstance(result, Printed):
        console = plain_console()
        width_is_known = console.is_terminal or "COLUMNS" in os.environ
        if not (result.fits_width and width_is_known):
            console = wide_console(console, TABLE_WIDTH)
        result.show(console)
    elif isinstance(result, str):
        print(result)
    sys.stdout.flush()
    return int(getattr(result, "code", 0))


def _in_option_names(error: UserError, command: Callable[..., Any]) -> UserError:
    """Return the same mistake with the options of a command in place of Python parameters.

    A parameter is named at the start of the location, and in backquotes elsewhere. A path may begin
    with such a name, too. So in a location the name must end the text, or be followed by a space, a
    colon or a bracket.
    """
    options = {
        name: NAMES.get(name, f"--{name.replace('_', '-')}")
        for name, parameter in inspect.signature(command).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }

    def in_options(text: str) -> str:
        return re.sub(
            r"`(\w+)(?:=True)?`",
            lambda match: options.get(match[1], match[0]),
            text,
        )

    where = re.sub(
        r"^\w+(?=$|[\s:\[])",
        lambda match: options.get(match[0], match[0]),
        error.where,
    )
    return type(error)(in_options(where), in_options(error.what), in_options(error.hint))


def _complain(text: str) -> None:
    """Print a message in red on standard error."""
    print_line(plain_console(stderr=True), f"fedsim: {text}", "red")
