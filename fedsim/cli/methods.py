"""Commands on algorithms: what there is, a start of one's own, checks and audits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from fedsim.cli.app import Param, TrustPlugin, app, folder, interruptible, own_code
from fedsim.errors import UserError, at
from fedsim.privacy.plan import Trust, Unit
from fedsim.words import plain_console, print_line, wide_console

if TYPE_CHECKING:
    from fedsim.data.embeddings import Embeddings
    from fedsim.results.store import ResultStore

METHODS_PANEL = "Methods"

Attack = Literal["white-box", "one-run", "black-box", "inversion"]
"""How an audit looks."""


@app.command(rich_help_panel=METHODS_PANEL)
def algorithms(
    name: Annotated[str | None, typer.Argument(help="One to show in full: a name, pkg.module:Class or file.py:Class.")] = None,
) -> None:
    """List the algorithms: source, claim by unit and trust, parameters with defaults; or show one in full."""
    from fedsim.cli.describe import algorithm_page, algorithms_table, describe
    from fedsim.plugins.registry import known

    console = wide_console(plain_console(), 100)
    for part in algorithm_page(describe(name)) if name else [algorithms_table(known())]:
        console.print(part)


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
        bool, typer.Option("--quick", help="Three rounds and few pairs of neighbouring data sets: seconds, but less is seen.")
    ] = False,
    run: Annotated[list[Path] | None, typer.Option(help="A run folder whose rows of this code claim what follows; repeatable.")] = None,
) -> None:
    """Look for what would void an algorithm's proof or its repeatability: per-example loss, sensitivity, noise, budget, seeds.

    It trains on 200 rows of digits and 4 clients, 12 rounds at a time, for about a minute. The exit code is 0 if all passed, 1 if
    something failed.
    With --run, rows of this code with the parameters given here (others: the defaults) say `checked` in place of `stated` after a full
    check that passed. After a fault in what the claim rests on they say `heuristic`, and so do those of parameters that have not passed.
    """
    import torch

    from fedsim.evidence.audit.setting import parameters
    from fedsim.evidence.check.check import check_algorithm, check_lines, findings_table
    from fedsim.evidence.check.subject import DELTA, EPSILON
    from fedsim.plugins.own_errors import own_errors
    from fedsim.results.store import ResultStore

    stores = [ResultStore(folder) for folder in run or []]
    for store in stores:
        store.folder.check()
    # on so small tensors a second thread only waits
    torch.set_num_threads(1)
    with own_errors(algorithm):
        in_a_grid = parameters(algorithm, param or [], "example", "aggregate", EPSILON, DELTA)
        findings = list(check_algorithm(algorithm, param or [], unit, trust, quick=quick))
    console = wide_console(plain_console(), 100)
    console.print(findings_table(algorithm, findings))
    lines = check_lines(algorithm, in_a_grid, findings, quick=quick)
    for store in stores:
        _note_checks(store, lines, console)
    if any(finding.passed is False for finding in findings):
        raise typer.Exit(1)


def _note_checks(store: ResultStore, lines: list[dict[str, Any]], console: Console) -> None:
    """Write a check's lines into a run folder, and say what its rows of that code claim now."""
    from fedsim.results.grid_rows import read_results

    if lines:
        store.append("checks", lines)
    results = read_results(store.folder.path)
    results.write()
    rows = [row for row in results.rows if lines and row.source == lines[0]["source"]]
    claims = ", ".join(f"{count} {claim}" for claim, count in Counter(str(row.claim) for row in rows).items())
    print_line(console, f"{store.folder.path}: rows of this code: {claims or 'none'}")


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
    attack: Annotated[
        Attack,
        typer.Option(
            help="white-box: pairs of trainings; one-run: many canaries in one DP-SGD training; black-box: what is released; "
            "inversion: rows reconstructed from one client's gradient or update, an illustration."
        ),
    ] = "white-box",
    pairs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pairs of trainings, canaries, or attacked clients; "
            "default: 1000 (white-box), 400 (one-run), 200 (black-box), 3 (inversion).",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Embeddings for inversion, as in a grid: digits (the default), npz:PATH, a YAML mapping.")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Other rows of each client, through which the unit may act.")] = 2,
    out: Annotated[Path, folder("The folder of the results, from which the same command goes on.")] = Path("runs") / "audit",
    trust_plugin: TrustPlugin = False,
) -> None:
    """Compute a lower bound of ε: train with and without a unit, and let an adversary tell which from every noisy output.

    The exit code is 1 if a bound with 95 % confidence is above the claim, else 0, which proves nothing. Interrupt it at any time; the
    same command goes on where it stopped, and a larger --pairs adds to what is there.
    For a run folder: membership inference from the synthetic rows of its generators, with cells of other seeds and sites as shadows.
    """
    from rich.markup import escape
    from rich.progress import Progress

    from fedsim.evidence.audit.audit import AuditRun
    from fedsim.evidence.audit.black_box import BlackBox
    from fedsim.evidence.audit.inversion import Inversion
    from fedsim.evidence.audit.one_run import MANY_DIM
    from fedsim.evidence.audit.setting import ROW_DIM, parameters, setting_of_options
    from fedsim.plugins.own_errors import own_errors
    from fedsim.results.store import ResultStore

    console, store = wide_console(plain_console(), 100), ResultStore(out)
    if Path(algorithm).is_dir():
        _refuse_given(context, Path(algorithm))
        _attack_run(Path(algorithm), console, trust_plugin=trust_plugin)
        return
    if "/" in algorithm and ":" not in algorithm:
        raise UserError(algorithm, "there is no such run folder", "give one, an algorithm's name, or my_file.py:MyMethod")
    if dataset is not None and attack != "inversion":
        raise UserError("--dataset", f"means nothing for --attack {attack}", "leave it out, or give --attack inversion")
    own_code()
    run: AuditRun | BlackBox | Inversion
    with interruptible(console), own_errors(algorithm):
        if attack == "inversion":
            known = parameters(algorithm, param or [], unit, trust, epsilon, delta)
            run = Inversion(algorithm, known, unit, trust, epsilon, delta, _embeddings(dataset or "digits"), pairs or 3)
        elif attack == "black-box":
            known = parameters(algorithm, param or [], unit, trust, epsilon, delta)
            run = BlackBox(algorithm, known, unit, trust, epsilon, delta, pairs or 200)
        else:
            dim, count = (MANY_DIM, 400) if attack == "one-run" else (ROW_DIM, 1000)
            run = AuditRun(setting_of_options(algorithm, param or [], unit, trust, epsilon, delta, dim, rows), attack, pairs or count)
        with store.lock(), Progress(console=console, transient=True) as progress:
            task = progress.add_task(escape(algorithm), total=run.count)
            words, refuted = run.completed(
                store.audit_pairs(run.key),
                lambda lines: store.append("pairs", ({"audit": run.key, **line} for line in lines)),
                lambda count: progress.update(task, completed=count),
            )
    if isinstance(run, Inversion):
        console.print(run.table(store.audit_pairs(run.key)))
    for line in words:
        print_line(console, f"{algorithm}, {unit}, {trust}: {line}")
    raise typer.Exit(1 if refuted else 0)


def _embeddings(dataset: str) -> Embeddings:
    """The data set that an option names."""
    from fedsim.data.sources.load import load
    from fedsim.data.sources.spec import DatasetSpec
    from fedsim.grid.read import parse_option

    spec = parse_option(DatasetSpec, "--dataset", dataset, {}).within(Path.cwd())
    with at("--dataset"):
        return load(spec)


def _refuse_given(context: typer.Context, folder: Path) -> None:
    """Refuse options that mean nothing for a run folder."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in ("algorithm", "trust_plugin") and source is not None and source.name == "COMMANDLINE":
            where, what = f"--{name}", f"means nothing for {folder}, whose generators are attacked as they are"
            raise UserError(where, what, "leave it out, or give an algorithm")


def _attack_run(folder: Path, console: Console, *, trust_plugin: bool) -> None:
    """Print how well membership in the training rows can be inferred from a run's generators."""
    from fedsim.evidence.audit.black_box import attack_run
    from fedsim.results.grid_rows import read_manifest
    from fedsim.results.store import ResultStore
    from fedsim.runs.manifest import grid_of

    store = ResultStore(folder)
    store.folder.check()
    grid = grid_of(read_manifest(folder), store.folder)
    for line in attack_run(store.folder, grid, trust_plugin=trust_plugin):
        print_line(console, line)
