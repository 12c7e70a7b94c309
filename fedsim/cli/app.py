"""What all commands share: the application, its options and its way out."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from typer.core import TyperGroup

from fedsim.errors import UserError
from fedsim.files import unread
from fedsim.interrupts import INTERRUPTED, interrupts, soon
from fedsim.words import plain_console, print_line


class Commands(TyperGroup):
    """The commands; Ctrl-C ends those that have no words of their own for it with one."""

    def invoke(self, ctx: Any) -> Any:
        """See typer."""
        with interruptible(plain_console(), goes_on=False):
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    help="Federated generative algorithms side by side, under identical partitions and honest differential privacy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_OTHERS = ("synth", "release", "verify", "audit")
"""Commands that may read what somebody else has made, and run code of the working folder only with --trust-plugin."""


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
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print version and revision.")] = False,
) -> None:
    """A subcommand a task."""
    if context.invoked_subcommand not in _OTHERS:
        _own_code()


def _own_code() -> None:
    from fedsim.plugins.registry import find_in_working_folder

    find_in_working_folder()


def _trusted(given: bool) -> bool:
    if given:
        _own_code()
    return given


def folder(what: str) -> Any:
    """The option ``--out``, a folder; an empty text, as an empty variable of a shell is, names none and is refused."""

    def named(text: str) -> Path:
        if not text:
            raise UserError("--out", "is empty", "give a folder, or leave --out out")
        return Path(text)

    return typer.Option(parser=named, metavar="PATH", help=what)


GridFile = Annotated[Path | None, typer.Argument(metavar="GRID", help="The grid file (YAML).")]
GridOption = Annotated[Path | None, typer.Option("--grid", metavar="GRID", help="The same as an option.")]
Replaced = Annotated[
    list[str] | None, typer.Option("--set", help="Replace a value of the grid, as often as needed: alpha=[0.3], or resources.device=cpu.")
]
Param = Annotated[list[str] | None, typer.Option(help="A parameter of the algorithm, as often as needed: key=YAML, such as latent=16.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart.")]
Address = Annotated[str | None, typer.Option(help="The address of a running Ray cluster; default: start a local one.")]
MaxParallel = Annotated[int | None, typer.Option(min=1, help="Run at most this many cells at a time.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show every cell and its plan; run nothing.")]
InProcess = Annotated[
    bool, typer.Option("--in-process", help="Run one cell after another in this process, without Ray: for debuggers and profilers.")
]
TrustPlugin = Annotated[bool, typer.Option("--trust-plugin", callback=_trusted, help="Run the code of plug-ins that the run folder names.")]


def grid_file(argument: Path | None, option: Path | None) -> Path:
    """The grid file, given as an argument or as ``--grid``.

    Raises:
        UserError: it is given twice or not at all.
    """
    if (argument is None) == (option is None):
        what = "no grid file is given" if option is None else f"{argument} and --grid {option} are both given"
        raise UserError("GRID", what, "give one, as in `fedsim bench grid.yaml`")
    return argument or option or Path()


@contextmanager
def interruptible(console: Console, *, goes_on: bool = True) -> Iterator[None]:
    """Ctrl-C ends the block with a word and exit code 130; ``goes_on``: whether what is done is kept for the same command."""
    try:
        yield
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on" if goes_on else "interrupted", highlight=False)
        raise typer.Exit(INTERRUPTED) from None


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2."""
    # a tenth as many searches for garbage in all there is, and none at the end: a fifth of what torch and Ray take to load
    gc.set_threshold(*gc.get_threshold()[:2], 100)
    atexit.register(gc.freeze)
    if not os.environ.get("COLUMNS", "").strip("0"):  # in a width of 0 nothing would be printed
        os.environ.pop("COLUMNS", None)
    sys.stdout, sys.stderr = _there(sys.stdout), _there(sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what its encoding lacks, such as ε, is a question mark and no reason to end
            stream.reconfigure(errors="replace")
    try:
        with soon(), interrupts():
            app()
    except UserError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except OSError as error:  # a file or folder that no earlier check covers
        if isinstance(error, ConnectionError | TimeoutError):
            raise
        _complain(str(UserError(str(error.filename or ""), f"cannot be used ({unread(error)})")))
        sys.exit(2)


def _there(stream: TextIO | None) -> TextIO:
    """A standard stream, or nowhere if it is closed, without which Ray does not start."""
    return open(os.devnull, "w", encoding="utf-8") if stream is None else stream


def _complain(text: str) -> None:
    print_line(plain_console(stderr=True), f"fedsim: {text}", "red")
