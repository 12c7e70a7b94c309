"""The ``fedsim`` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer
from rich.console import Console

from fedsim.errors import UserError, at
from fedsim.interrupts import INTERRUPTED, interrupts, soon
from fedsim.privacy.plan import Trust, Unit
from fedsim.regular import unread
from fedsim.words import wide_console

if TYPE_CHECKING:
    from fedsim.grid.models import Grid

Attack = Literal["white-box", "one-run", "black-box"]
"""How an audit looks."""

Format = Literal["md", "latex"]
"""How tables are printed: GitHub Markdown, or LaTeX."""

app = typer.Typer(
    help="Federated generative algorithms side by side, under identical partitions and honest differential privacy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


data = typer.Typer(help="Data sets.", no_args_is_help=True)
app.add_typer(data, name="data")


@app.callback()
def fedsim(context: typer.Context) -> None:
    """A subcommand a task."""
    if context.invoked_subcommand not in _OTHERS:
        _own_code()


_OTHERS = ("synth", "judge", "verify")
"""Commands that read what somebody else may have made, and run no code of the working folder unless they are told to."""


def _own_code() -> None:
    """Let a grid name pkg.module:Class of the folder one works in."""
    sys.path.append(os.getcwd())


def _trusted(given: bool) -> bool:
    if given:
        _own_code()
    return given


TrustPlugin = Annotated[bool, typer.Option("--trust-plugin", callback=_trusted, help="Run the code of plug-ins that the run folder names.")]


@app.command()
def bench(
    grid: Annotated[Path, typer.Option(help="The grid file (YAML).")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Replace a value of the grid: key=YAML, such as alpha=[0.3].")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; default: runs/<name of the grid>.")] = None,
    address: Annotated[str | None, typer.Option(help="An existing Ray cluster; default: a new local one.")] = None,
    max_parallel: Annotated[int | None, typer.Option(min=1, help="At most so many cells at a time.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run cells again that failed before.")] = False,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Leave out algorithms whose plug-in is refused; exit code 1.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show every cell and its plan; run nothing.")] = False,
) -> None:
    """Run a grid: every algorithm on every partition, budget and seed; then draw the privacy-utility curves.

    Interrupt it at any time; the same command goes on where it stopped.
    """
    from fedsim.grid.read import load_grid

    checked = load_grid(grid, set_ or [])
    folder = out or Path("runs") / checked.name
    _bench(checked, folder, address, max_parallel=max_parallel, retry_failed=retry_failed, keep_going=keep_going, dry_run=dry_run)


def _bench(
    grid: Grid,
    folder: Path,
    address: str | None,
    *,
    max_parallel: int | None = None,
    retry_failed: bool = False,
    keep_going: bool = False,
    dry_run: bool = False,
) -> None:
    """Run a grid, or show its plan; the exit code says how it went."""
    from fedsim.results.store import ResultStore

    if not dry_run:  # before anything that takes time
        ResultStore(folder).check_free()
    from fedsim.grid.resolve import plug_in_files, resolve
    from fedsim.runtime.bench import run_bench
    from fedsim.runtime.cluster import joined_cluster, local_cluster, this_machine
    from fedsim.runtime.display import Preparing
    from fedsim.runtime.rehearsing import everywhere
    from fedsim.simulation.plan_table import show_plan
    from fedsim.simulation.preflight import prepare

    console = Console()
    with ExitStack() as stack:
        node = this_machine()
        with _interruptible(console), Preparing(Console(stderr=True)) as tell:
            nodes, rehearsal = [node], None
            if address:
                files = plug_in_files(resolve(grid, keep_going=keep_going))
                nodes, rehearsal = stack.enter_context(joined_cluster(address, files)), everywhere
            prepared = prepare(grid, nodes, max_parallel, keep_going=keep_going, rehearsal=rehearsal, tell=tell)
        if dry_run:
            show_plan(prepared, console)
            raise typer.Exit(1 if prepared.refused else 0)
        # A local cluster starts only when there is something to run on it.
        engine = nullcontext() if address else local_cluster(node)
        code = run_bench(prepared, folder, console, engine, retry_failed=retry_failed)
    raise typer.Exit(code)


@contextmanager
def _interruptible(console: Console) -> Iterator[None]:
    """Ctrl-C ends the block with a word and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on", highlight=False)
        raise typer.Exit(INTERRUPTED) from None


@data.command("list")
def data_list() -> None:
    """Show the data sets that fedsim knows: classes, size, licence, source."""
    from fedsim.data.sources.catalogue import catalogue_table

    wide_console(Console()).print(catalogue_table())


@app.command()
def algorithms(
    name: Annotated[str | None, typer.Argument(help="One to show in full: a name, pkg.module:Class or file.py:Class.")] = None,
) -> None:
    """Show the algorithms that fedsim knows: source, what they claim for whom, parameters with defaults."""
    from fedsim.kit.describe import algorithm_page, algorithms_table, describe
    from fedsim.methods.registry import known

    console = wide_console(Console(), 100)
    for part in algorithm_page(describe(name)) if name else [algorithms_table(known())]:
        console.print(part)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="What the method is called, such as my-method.")],
    origin: Annotated[
        str | None, typer.Option("--from", help="Start from a copy of this algorithm; default: a small private CVAE.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of the files.")] = Path(),
) -> None:
    """Write a method to start from: its file, its test and its grid, which run as they are."""
    from fedsim.kit.new import write_method

    for path in write_method(name, origin, out):
        Console().print(f"{path}", soft_wrap=True, highlight=False, markup=False)


@app.command()
def embed(
    dataset: Annotated[str, typer.Option(help="As in a grid: medmnist:organsmnist, imagefolder:PATH, csv:PATH, or a YAML mapping.")],
    encoder: Annotated[str, typer.Option(help="A vision transformer of the Hugging Face hub, or a local folder.")],
    out: Annotated[Path, typer.Option(help="The .npz file of embeddings.")],
    size: Annotated[int | None, typer.Option(help="Pixels of a MedMNIST set: 28, 64, 128 or 224.")] = None,
    root: Annotated[Path | None, typer.Option(help="The folder of a MedMNIST or MILK10k set's files.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many training and so many test images.")] = None,
    revision: Annotated[str | None, typer.Option(help="A commit of the encoder's repository.")] = None,
    pool: Annotated[str, typer.Option(help="cls, mean or cls+mean.")] = "cls",
    dtype: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    batch: Annotated[int, typer.Option(min=1, help="Images that the model takes at once.")] = 64,
    actors: Annotated[int, typer.Option(min=1, help="Encoders side by side, sharing this machine's GPUs.")] = 1,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be decoded.")] = False,
) -> None:
    """Turn a data set's images into embeddings. Interrupt it at any time; the same command goes on where it stopped."""
    from fedsim.data.encoding.archive import check_target, export, read_manifest
    from fedsim.data.encoding.embed import EmbedJob, Work, in_process
    from fedsim.data.encoding.embed import embed as embedded
    from fedsim.data.encoding.encoder import locate
    from fedsim.data.encoding.spec import EncoderSpec
    from fedsim.data.sources.load import image_set
    from fedsim.data.sources.spec import DatasetSpec
    from fedsim.grid.read import parse_option

    check_target(out)
    given = {"size": size, "root": root, "limit": limit, "skip_bad": skip_bad or None}
    spec = parse_option(DatasetSpec, "--dataset", dataset, given).within(Path.cwd())
    asked = parse_option(EncoderSpec, "--encoder", encoder, {"revision": revision, "pool": pool, "dtype": dtype})
    console = Console()
    with at("--dataset"):
        images = image_set(spec)
    with at("--encoder"):
        files = locate(asked)
    job = EmbedJob(images.below("--dataset"), files, asked, batch)
    work: Work = in_process
    if actors > 1:
        from fedsim.runtime.cluster import this_machine
        from fedsim.runtime.embedding import on_actors

        work = on_actors(actors, this_machine())
    with _interruptible(console):
        export(embedded(job, console, skip_bad=spec.skip_bad, work=work), out)
    manifest = read_manifest(out) or {}
    rows, dim = manifest["shape"]
    skipped = f", {len(manifest['skipped'])} bad images left out" if manifest["skipped"] else ""
    console.print(
        f"{out}: {rows} embeddings of {dim} dimensions{skipped}; manifest: {out.with_suffix('.json')}", soft_wrap=True, highlight=False
    )


@app.command()
def run(
    algorithm: Annotated[str, typer.Option(help="A registered name, or pkg.module:Class.")],
    dataset: Annotated[str, typer.Option(help="As in a grid.")] = "digits",
    encoder: Annotated[str | None, typer.Option(help="What embeds the data set's images.")] = None,
    partition: Annotated[str, typer.Option(help="A scheme, or a YAML mapping.")] = "dirichlet",
    alpha: Annotated[float, typer.Option(help="Dirichlet concentration.")] = 0.3,
    clients: Annotated[int, typer.Option(help="How many.")] = 10,
    epsilon: Annotated[float, typer.Option(help="The budget; inf: no privacy.")] = 1.0,
    delta: Annotated[float, typer.Option(help="Of the budget.")] = 1e-4,
    unit: Annotated[str, typer.Option(help="What the budget protects: example, client or {column: NAME}.")] = "example",
    trust: Annotated[str, typer.Option(help="Who may see what: aggregate or silo.")] = "aggregate",
    seed: Annotated[int, typer.Option(help="Root of all random numbers.")] = 0,
    param: Annotated[list[str] | None, typer.Option(help="A parameter of the algorithm: key=YAML, such as latent=16.")] = None,
    per_class: Annotated[int, typer.Option(help="Synthetic rows a class.")] = 200,
    out: Annotated[Path | None, typer.Option(help="The run folder; default: runs/run.")] = None,
    address: Annotated[str | None, typer.Option(help="An existing Ray cluster; default: a new local one.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; run nothing.")] = False,
) -> None:
    """Run one cell, from flags; its generator is kept for `fedsim synth`."""
    from fedsim.grid.read import grid_of_options

    checked = grid_of_options(
        {
            "algorithm": algorithm,
            "dataset": dataset,
            "encoder": encoder,
            "partition": partition,
            "alpha": alpha,
            "clients": clients,
            "epsilon": epsilon,
            "delta": delta,
            "unit": unit,
            "trust": trust,
            "seed": seed,
            "per-class": per_class,
        },
        param or [],
    )
    _bench(checked, out or Path("runs") / "run", address, retry_failed=True, dry_run=dry_run)


@app.command()
def synth(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart.")],
    out: Annotated[Path, typer.Option(help="The .npz file of synthetic embeddings.")],
    cell: Annotated[str | None, typer.Option(help="The cell's id or its beginning.")] = None,
    synthesis: Annotated[str | None, typer.Option(help="A way that the algorithm has, or client:K; default: the cell's own.")] = None,
    per_class: Annotated[int, typer.Option(min=1, help="Rows a class.")] = 200,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Of the draw; default: the cell's.")] = None,
    trust_plugin: TrustPlugin = False,
) -> None:
    """Draw synthetic embeddings from a saved generator; it costs no privacy."""
    from fedsim.data.encoding.archive import check_target, write_npz, write_sidecar

    check_target(out)
    import numpy as np

    from fedsim.results.folder import RunFolder
    from fedsim.simulation.generators import load_generator

    generator = load_generator(folder, cell, synthesis, trust_plugin=trust_plugin)
    x, y = generator.synthesise(per_class, seed)
    manifest = generator.manifest(per_class, seed)
    names = {"class_names": np.array(manifest["class_names"])} if manifest["class_names"] else {}
    write_npz(out, (len(x), x.shape[1]), "float32", [x], {"y": y, **names}, manifest)
    write_sidecar(out, manifest)
    told = " ".join(f"{key} {manifest[key]}" for key in ("epsilon", "delta", "unit", "trust", "claim"))
    Console().print(f"{out}: {len(x)} synthetic embeddings of {x.shape[1]} dimensions; {told}", soft_wrap=True, highlight=False)
    if not generator.vouched:
        told = f"no {RunFolder(folder).results} is there to vouch for it: all this is by the generator's own word"
        Console().print(told, soft_wrap=True, highlight=False, markup=False)


@app.command()
def partition(
    grid: Annotated[Path, typer.Option(help="The grid file (YAML).")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Replace a value of the grid: key=YAML, such as alpha=[0.3].")] = None,
    show: Annotated[bool, typer.Option("--show", help="Also print and draw every label-by-client matrix.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where the pictures go; default: runs/<name of the grid>/curves.")] = None,
) -> None:
    """Show how a grid divides its data among clients, without training."""
    from fedsim.grid.read import load_grid
    from fedsim.grid.resolve import resolve

    checked = resolve(load_grid(grid, set_ or [])).grid
    from fedsim.report.figures import save_figure
    from fedsim.report.partitions import NAME, draw_partitions, label_table, summary_table
    from fedsim.results.folder import RunFolder
    from fedsim.simulation.label_matrices import label_matrices

    matrices = label_matrices(checked)
    console = wide_console(Console())
    if show:
        for matrix in matrices:
            console.print(label_table(matrix), "")
    console.print(summary_table(matrices))
    figure = draw_partitions(matrices) if show else None
    if figure is not None:
        for path in save_figure(figure, out or RunFolder(Path("runs") / checked.name).curves, NAME):
            console.print(f"picture: {path}", soft_wrap=True, highlight=False)


@app.command()
def check(
    algorithm: Annotated[str, typer.Argument(metavar="ALGORITHM", help="my_file.py:MyMethod, pkg.module:Class or a registered name.")],
    param: Annotated[list[str] | None, typer.Option(help="A parameter of the algorithm: key=YAML, such as latent=16.")] = None,
    unit: Annotated[Unit | None, typer.Option(help="example, group or client; default: all that the class states.")] = None,
    trust: Annotated[Trust | None, typer.Option(help="aggregate or silo; default: all that the class states.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Three rounds and few pairs of neighbours: seconds, and less is seen.")] = False,
) -> None:
    """Check that an algorithm keeps what every algorithm must: repeatable, sensitivity as claimed, noise and budget as planned.

    It runs on 200 rows of digits and 4 clients, with trainings of 12 rounds, about a minute. The exit code is 0 if all passed, 1 if
    something failed.
    What an algorithm states beyond its base class then counts as checked in the rows of the same code; not after a quick check.
    """
    import torch

    from fedsim.kit.check import check_algorithm, findings_table

    # on so small tensors a second thread only waits
    torch.set_num_threads(1)
    findings = list(check_algorithm(algorithm, param or [], unit, trust, quick=quick))
    console = wide_console(Console(), 100)
    console.print(findings_table(algorithm, findings))
    if any(finding.passed is False for finding in findings):
        raise typer.Exit(1)
    if not quick and (filed := _file_check(algorithm, param or [], {finding.setting for finding in findings})):
        console.print(f"on file: rows of this code say 'checked' for {' and '.join(filed)}", soft_wrap=True, highlight=False)


@app.command()
def audit(
    algorithm: Annotated[
        str, typer.Argument(metavar="ALGORITHM|RUN", help="A registered name, my_file.py:MyMethod or pkg.module:Class; or a run folder.")
    ],
    epsilon: Annotated[float, typer.Option(help="The claim.")] = 4.0,
    delta: Annotated[float, typer.Option(help="Of the claim.")] = 1e-4,
    unit: Annotated[Unit, typer.Option(help="What the claim protects: example, group or client.")] = "example",
    trust: Annotated[Trust, typer.Option(help="Who may see what: aggregate or silo.")] = "aggregate",
    param: Annotated[list[str] | None, typer.Option(help="A parameter: key=YAML; default: six rounds of a small network.")] = None,
    attack: Annotated[
        Attack, typer.Option(help="white-box: pairs of trainings; one-run: canaries in one (DP-SGD); black-box: by what is released.")
    ] = "white-box",
    pairs: Annotated[int | None, typer.Option(min=1, help="So many pairs, or canaries; default: 1000, 400 or 200.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows of each client beside the unit, through which it may act.")] = 2,
    out: Annotated[Path, typer.Option(help="The folder in which pairs are kept, for the same command to go on.")] = Path("runs") / "audit",
) -> None:
    """Bound from below what an algorithm gives away: train with and without a unit, and let an adversary see every noisy output.

    The exit code is 1 if a bound with 95 % confidence is above the claim, 0 if none is, which proves nothing. Interrupt it at any time; the
    same command goes on where it stopped, and with more pairs adds to them. Of a run folder: how well its generators' synthetic rows tell
    training rows from others, and how well with the cells of other seeds and sites as shadows.
    """
    from rich.progress import Progress

    from fedsim.audit.run import MANY, AuditRun, BlackBoxRun, Command, parameters, setting_of_options
    from fedsim.audit.setting import DIM
    from fedsim.results.store import ResultStore

    console, store = wide_console(Console(), 100), ResultStore(out)
    if Path(algorithm).is_dir():
        _attack_run(Path(algorithm), console)
        return
    run: Command
    if attack == "black-box":
        known = parameters(algorithm, param or [], unit, trust, epsilon, delta)
        run = BlackBoxRun(algorithm, known, unit, trust, epsilon, delta, pairs or 200)
    else:
        dim, count = (MANY, 400) if attack == "one-run" else (DIM, 1000)
        run = AuditRun(setting_of_options(algorithm, param or [], unit, trust, epsilon, delta, dim, rows), attack, pairs or count)
    with _interruptible(console), store.lock(), Progress(console=console, transient=True) as progress:
        task = progress.add_task(algorithm, total=run.count)
        reached = run.completed(
            store.audits(run.key), partial(store.append_audits, run.key), lambda count: progress.update(task, completed=count)
        )
    for line in reached.words:
        console.print(f"{algorithm}, {unit}, {trust}: {line}", soft_wrap=True, highlight=False, markup=False)
    raise typer.Exit(1 if reached.refuted else 0)


def _attack_run(folder: Path, console: Console) -> None:
    """Tell how well a run's generators give away who was trained on."""
    from fedsim.audit.of_run import of_run
    from fedsim.report.report import read_manifest
    from fedsim.results.store import ResultStore
    from fedsim.runtime.judging import finished_rows
    from fedsim.runtime.manifest import grid_of

    store = ResultStore(folder)
    store.folder.check()
    for line in of_run(store.folder, grid_of(read_manifest(folder), store.folder), finished_rows(store)):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _file_check(algorithm: str, param: list[str], settings: set[str]) -> list[str]:
    """Note a passed check where the algorithm states more than its base class proves; the settings that were noted."""
    from fedsim.kit.checks.subject import subject
    from fedsim.methods.check_file import file_passed
    from fedsim.methods.claims import is_guaranteed

    filed = []
    for unit, trust in product(get_args(Unit), get_args(Trust)):
        if f"{unit}, {trust}" not in settings:
            continue
        checked = subject(algorithm, param, unit, trust).algorithm
        if checked.claim() == "proved" and not is_guaranteed(checked):
            file_passed(checked)
            filed.append(f"{unit}, {trust}")
    return filed


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.")],
    format_: Annotated[Format | None, typer.Option("--format", help="Print the page's tables so, and draw nothing.")] = None,
) -> None:
    """Draw the summary, the curves and the page of a run folder again, from its rows alone."""
    from fedsim.report.report import page_tables, write_report

    if format_ is not None:
        from fedsim.report.typeset import typeset

        typer.echo(typeset(page_tables(folder), format_))
        return
    console, drawn = Console(), write_report(folder)
    drawn.show(console)
    console.print(f"report: {drawn.page}", soft_wrap=True, highlight=False)


@app.command("judge")
def judge_run(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart.")],
    address: Annotated[str | None, typer.Option(help="An existing Ray cluster; default: a new local one.")] = None,
    max_parallel: Annotated[int | None, typer.Option(min=1, help="At most so many cells at a time.")] = None,
    trust_plugin: TrustPlugin = False,
) -> None:
    """Judge a run's saved generators anew, by the readouts and references of today, without training; then draw the report.

    Interrupt it at any time; the same command goes on where it stopped.
    """
    from fedsim.runtime.cluster import joined_cluster, local_cluster, this_machine
    from fedsim.runtime.judging import run_judging

    console = Console()
    with ExitStack() as stack:
        node = this_machine()
        nodes = stack.enter_context(joined_cluster(address)) if address else [node]
        with _interruptible(console):
            engine = nullcontext() if address else local_cluster(node)
            code = run_judging(folder, nodes, console, engine, max_parallel, trust_plugin=trust_plugin)
    raise typer.Exit(code)


@app.command("compare")
def compare_runs(
    first: Annotated[Path, typer.Argument(metavar="RUN1", help="A run folder, such as runs/quickstart.")],
    second: Annotated[Path, typer.Argument(metavar="RUN2", help="Another, of the same settings and seeds or some of them.")],
) -> None:
    """Compare two runs, row by row: exit code 0 if they are equal to the last bit but for wall time, 1 if something differs."""
    from fedsim.report.comparison import compare_folders

    compared = compare_folders(first, second)
    compared.show(wide_console(Console()))
    raise typer.Exit(0 if compared.comparison.equal else 1)


@app.command()
def account(
    epsilon: Annotated[float, typer.Option(help="The budget.")],
    delta: Annotated[float, typer.Option(help="Of the budget.")] = 1e-4,
    rounds: Annotated[int | None, typer.Option(help="Noisy steps.")] = None,
    sample_rate: Annotated[float | None, typer.Option(help="The probability with which an example is in a step; default: 1.")] = None,
    unit: Annotated[str, typer.Option(help="What the budget protects: example or client.")] = "example",
    clients: Annotated[int | None, typer.Option(min=1, help="How many there are, for --unit client.")] = None,
    client_rate: Annotated[float | None, typer.Option(help="The probability with which a client takes part; for --unit client.")] = None,
    releases: Annotated[Path | None, typer.Option(help="Several kinds of release: a YAML list, in place of --rounds and the rate.")] = None,
    out: Annotated[Path, typer.Option(help="The folder of the picture and the tables.")] = Path("runs/account"),
) -> None:
    """What a budget buys, without data: σ, ε after each round, the price of one more, the (ε, δ) curve, what an adversary can tell."""
    from fedsim.proof.budget import account as accounted
    from fedsim.proof.budget import settings
    from fedsim.report.budget import budget_words, curve_tables, how_computed, rounds_table, write_budget

    described, checked, notes = settings(
        rounds=rounds, sample_rate=sample_rate, unit=unit, clients=clients, client_rate=client_rate, delta=delta, releases=releases
    )
    with at(lambda where: f"--{where}" if where in ("epsilon", "delta") else where):
        budget = accounted(epsilon, delta, described, unit=checked, notes=notes)
    console = wide_console(Console(), 100)
    for line in budget_words(budget):
        console.print(line, highlight=False, markup=False)
    for table in (rounds_table(budget), *curve_tables(budget)):
        console.print("", table)
    console.print("")
    for line in how_computed(budget):
        console.print(line, style="dim", highlight=False, markup=False)
    for path in write_budget(budget, out):
        console.print(f"wrote {path}", soft_wrap=True, highlight=False)


@app.command("plan")
def plan_grid(
    grid: Annotated[Path, typer.Option(help="The grid file (YAML).")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Replace a value of the grid: key=YAML, such as alpha=[0.3].")] = None,
) -> None:
    """What noise each statistic and gradient of every cell gets, in the units of its signal: what ε buys, before anything runs."""
    from fedsim.grid.read import load_grid
    from fedsim.runtime.cluster import this_machine
    from fedsim.simulation.noise_table import show_noise
    from fedsim.simulation.preflight import prepare

    console = Console()
    with _interruptible(console):
        show_noise(prepare(load_grid(grid, set_ or []), [this_machine()]), console)


@app.command("diagnose")
def diagnose_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A tool's settings (YAML), such as benchmarks/accounting/dp_cvae.yaml.")],
) -> None:
    """What another tool's noise is worth by unit and trust, from its settings, or why there is no ε."""
    from fedsim.proof.diagnose import diagnosis, read_settings

    for line in diagnosis(read_settings(file)):
        typer.echo(line)


@app.command("prove")
def prove_rows(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart.")],
) -> None:
    """Compute every ε of a run again, from its rows alone, with dp-accounting. Exit code 1 unless every claimed ε is proved."""
    from fedsim.proof.prove import proofs_table, proofs_words, prove
    from fedsim.results.store import ResultStore

    store = ResultStore(folder)
    store.folder.check()
    proofs = [prove(row) for row in store.rows()]
    console = wide_console(Console())
    console.print(proofs_table(folder.resolve().name, proofs))
    console.print(proofs_words(proofs), highlight=False, markup=False)
    raise typer.Exit(1 if any(proof.verdict in ("differs", "not proved") for proof in proofs) else 0)


@app.command()
def statement(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart.")],
) -> None:
    """Print the privacy statement of every method of a run: unit, relation, trust, accountant, σ, rounds, sampling, what is not covered."""
    from fedsim.proof.statement import statements
    from fedsim.report.report import grid_rows
    from fedsim.results.folder import RunFolder

    RunFolder(folder).check()
    for each in statements(grid_rows(folder)):
        typer.echo("\n".join(each.lines) + "\n")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart.")],
    cells: Annotated[int, typer.Option(min=1, help="How many finished cells, drawn at random.")] = 3,
    trust_plugin: TrustPlugin = False,
) -> None:
    """Run some finished cells of a run again and compare: exit code 0 if rows and rounds are equal to the last bit, 1 if not."""
    from fedsim.runtime.cluster import local_cluster, this_machine
    from fedsim.runtime.verify import Verification
    from fedsim.simulation.preflight import prepare

    console, node = wide_console(Console()), this_machine()
    with _interruptible(console):
        verification = Verification.of(folder, lambda grid: prepare(grid, [node]), trust_plugin=trust_plugin)
        equal = verification.run(cells, console, local_cluster(node))
    raise typer.Exit(0 if equal else 1)


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2."""
    try:
        with soon(), interrupts():
            app()
    except UserError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except OSError as error:  # a file or folder that nobody asked about earlier
        if isinstance(error, ConnectionError | TimeoutError):
            raise
        _complain(str(UserError(str(error.filename or ""), f"cannot be used ({unread(error)})")))
        sys.exit(2)


def _complain(text: str) -> None:
    Console(stderr=True, soft_wrap=True).print(f"fedsim: {text}", style="red", highlight=False, markup=False)
