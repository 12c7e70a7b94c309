"""Commands on algorithms: what there is, a start of one's own, checks and audits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsim.cli.app import Param, TrustPlugin, app, folder, interruptible
from fedsim.errors import UserError
from fedsim.privacy.plan import Trust, Unit
from fedsim.words import plain_console, print_line, wide_console

METHODS_PANEL = "Methods"


@app.command(rich_help_panel=METHODS_PANEL)
def algorithms(
    name: Annotated[str | None, typer.Argument(help="One to show in full: a name, pkg.module:Class or file.py:Class.")] = None,
) -> None:
    """List the algorithms: source, claim by unit and trust, parameters with defaults; or show one in full."""
    from fedsim.api.describe import algorithms_table, describe
    from fedsim.plugins.registry import known

    console = wide_console(plain_console(), 100)
    if name:
        describe(name).show(console)
    else:
        console.print(algorithms_table(known()))


@app.command(rich_help_panel=METHODS_PANEL)
def new(
    name: Annotated[str, typer.Argument(help="The name of the method, such as my-method.")],
    origin: Annotated[
        str | None, typer.Option("--from", help="Start from a copy of this algorithm; default: a small private CVAE.")
    ] = None,
    out: Annotated[Path, folder("The folder of the files.")] = Path(),
) -> None:
    """Write a method to start from: a file, a test and a grid that run as they are."""
    from fedsim.cli.new import write_method

    for path in write_method(name, origin, out):
        print_line(plain_console(), f"{path}")


@app.command(rich_help_panel=METHODS_PANEL)
def check(
    algorithm: Annotated[str, typer.Argument(metavar="ALGORITHM", help="my_file.py:MyMethod, pkg.module:Class or a registered name.")],
    param: Param = None,
    unit: Annotated[Unit | None, typer.Option(help="example, group or client; default: all that the class states.")] = None,
    trust: Annotated[Trust | None, typer.Option(help="aggregate or silo; default: all that the class states.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="40 random pairs of neighbouring data sets in place of 400: less is seen.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print all that was seen, not the faults alone.")] = False,
    run: Annotated[list[Path] | None, typer.Option(help="A run folder whose rows of this code claim what follows; repeatable.")] = None,
) -> None:
    """Look for what would void an algorithm's proof or its repeatability: per-example loss, sensitivity, noise, budget, seeds.

    It trains on rows of digits and 4 clients, for about a minute. The exit code is 0 if all passed, 1 if something failed.
    With --run, rows of this code with the parameters given here (others: the defaults) say `checked` in place of `stated` after a full
    check that passed. After a fault in what the claim rests on they say `heuristic`, and so do those of parameters that have not passed.
    """
    from fedsim.api.methods import check as checked

    found = checked(algorithm, params=param or [], unit=unit, trust=trust, quick=quick, verbose=verbose, run=run or [])
    found.show(wide_console(plain_console(), 100))
    if not found.passed:
        raise typer.Exit(1)


@app.command(rich_help_panel=METHODS_PANEL)
def audit(
    context: typer.Context,
    algorithm: Annotated[
        str, typer.Argument(metavar="ALGORITHM|RUN", help="A registered name, my_file.py:MyMethod or pkg.module:Class; or a run folder.")
    ],
    epsilon: Annotated[float, typer.Option(help="ε that is claimed.")] = 4.0,
    delta: Annotated[float, typer.Option(help="δ that is claimed.")] = 1e-4,
    unit: Annotated[Unit, typer.Option(help="What the claim protects: example, group or client.")] = "example",
    trust: Annotated[
        Trust, typer.Option(help="What an adversary sees: aggregate, the sum over clients; silo, every message.")
    ] = "aggregate",
    param: Annotated[list[str] | None, typer.Option(help="A parameter: key=YAML; others are short: six rounds of a small network.")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of trainings.")] = 1000,
    rows: Annotated[int, typer.Option(min=0, help="Other rows of each client, through which the unit may act.")] = 2,
    out: Annotated[Path, folder("The folder of the results, from which the same command goes on.")] = Path("runs") / "audit",
    cell: Annotated[str | None, typer.Option(help="Of a run folder: the id of the one cell to attack, or its beginning.")] = None,
    trust_plugin: TrustPlugin = False,
) -> None:
    """Compute a lower bound of ε: train with and without a unit, and let an adversary tell which from every noisy output.

    The exit code is 1 if a bound with 95 % confidence is above the claim, else 0, which proves nothing. Interrupt it at any time; the
    same command goes on where it stopped, and a larger --pairs adds to what is there.
    For a run folder: membership inference from the synthetic rows of its generators, with cells of other seeds and sites as shadows.
    """
    from fedsim.api.methods import audit as audited
    from fedsim.api.run import load

    console = wide_console(plain_console(), 100)
    if Path(algorithm).is_dir():
        _refuse_given(context, Path(algorithm))
        for line in load(algorithm, trust_plugin=trust_plugin).audit(cell):
            print_line(console, line)
        return
    if "/" in algorithm and ":" not in algorithm:
        raise UserError(algorithm, "there is no such run folder", "give one, an algorithm's name, or my_file.py:MyMethod")
    if cell is not None:
        raise UserError("--cell", f"means nothing for {algorithm}, which is no run folder", "leave it out, or give a run folder")
    with interruptible(console):
        found = audited(
            algorithm,
            epsilon=epsilon,
            delta=delta,
            unit=unit,
            trust=trust,
            params=param or [],
            pairs=pairs,
            rows=rows,
            out=out,
        )
    found.show(console)
    raise typer.Exit(1 if found.refuted else 0)


def _refuse_given(context: typer.Context, folder: Path) -> None:
    """Refuse options that mean nothing for a run folder."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in ("algorithm", "cell", "trust_plugin") and source is not None and source.name == "COMMANDLINE":
            where, what = f"--{name}", f"means nothing for {folder}, whose generators are attacked as they are"
            raise UserError(where, what, "leave it out, or give an algorithm")
