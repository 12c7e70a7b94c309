"""Forecasts the memory that a grid needs, and refuses a grid that needs more than there is."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rich.console import Console

from fedsim.data.embeddings import Embeddings
from fedsim.errors import UserError
from fedsim.evaluation.subset import MOST_TRAIN_ROWS
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.parameters import local_names
from fedsim.models.layers import initial_model
from fedsim.plugins.code_hash import is_shipped
from fedsim.privacy.statistics.outer_products import BLOCK
from fedsim.runs.prepare import Prepared
from fedsim.seeds import Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.trial import Trial
from fedsim.words import counted, print_line

LIBRARIES = 170 * 2**20
"""The bytes of Python's and torch's code, which all processes of a machine share."""
PROCESS = 400 * 2**20
"""The bytes that a process takes for itself before it has data, evaluation included."""
ACTOR = 256 * 2**20
"""The same for a process that only hosts clients and evaluates nothing."""
REPORT = 300 * 2**20
"""The bytes for references and report where one process does everything."""
RAY = 2**29
"""The bytes of Ray's own processes, as `benchmarks/scale.py` measures them on one machine."""
REFERENCE_BYTES = 24
"""The bytes per number of the examples that train references, in double precision."""
STATISTIC_COPIES = 4
"""The number of arrays of a block's size, the block included, while a statistic is computed."""
MODEL_COPIES = 6
"""The number of arrays of the parameters' size while a model is trained.

These are the parameters, their gradients, the sum, its noise, and Adam's two moments.
"""
MATRICES = 8
"""The number of float64 matrices ``[d, d]`` that the server has while it computes moments."""
STATISTIC_BYTES = 24
"""The bytes per number of a statistic.

These are its sum in double precision, its noise, and three copies of the released number on its way
to a file of the run folder.
"""
SUM_BYTES = 8
"""The bytes per number of a statistic while the first actor adds up its sum."""
SENT_BYTES = 16
"""The bytes per number of a statistic at each further actor: the actor's sum and its message.

Sums and messages are freed before the released number is copied.
"""
_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
"""The files in which Linux says how much memory a container may use."""


@dataclass(frozen=True)
class CellMemory:
    """The bytes that one cell needs besides the data set.

    Attributes:
        processes: what its processes take before they have data.
        examples: the copies of all examples that the method keeps, such as the one in released
            coordinates.
        model: the models, with their gradients and noise.
        statistics: the products of a block of examples, the released sums, and the matrices that
            the server makes of them.
    """

    processes: int
    examples: int
    model: int
    statistics: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.processes + self.examples + self.model + self.statistics


def memory_of_cell(trial: Trial, processes: int = 1) -> CellMemory:
    """Return the memory that a cell needs, estimated from its numbers of examples and parameters.

    The code of a plug-in may do anything. So its model is not counted, but at least one copy of
    the examples is.

    Args:
        trial: the cell.
        processes: the number of processes that compute it.
    """
    task = trial.task
    algorithm = build_algorithm(trial.cell.algorithm, trial.cell.params, task)
    copies = algorithm.copies_of_examples()
    model = 0
    if is_shipped(type(algorithm)):
        model = MODEL_COPIES * _parameter_bytes(algorithm, trial.cell.clients)
    else:
        copies = max(copies, 1)
    statistics = 0
    numbers = algorithm.statistic_numbers()
    if numbers or copies:
        statistics += STATISTIC_COPIES * 4 * _largest_block(trial) * task.dim
    if numbers:
        matrices = MATRICES * 8 * task.dim**2
        sent = SUM_BYTES + SENT_BYTES * (processes - 1)
        statistics += matrices + max(STATISTIC_BYTES, sent) * numbers
    return CellMemory(
        processes=PROCESS + (processes - 1) * ACTOR,
        examples=copies * trial.train_rows * task.dim * 4,
        model=model,
        statistics=statistics,
    )


def _largest_block(trial: Trial) -> int:
    """Return the number of examples in the largest block of a statistic; a unit is in one block."""
    largest = BLOCK
    if trial.task.unit == "client":
        largest = max(BLOCK, *map(len, trial.partition.rows))
    return min(largest, trial.train_rows)


def _parameter_bytes(algorithm: Algorithm, clients: int) -> int:
    """Return the bytes of a cell's shared parameters and of the parameters of every client."""
    model = initial_model(algorithm.build, Seeds(0), (0,))
    parameters = dict(model.named_parameters())
    local_bytes = sum(parameters[name].nbytes for name in local_names(model))
    shared_bytes = sum(value.nbytes for value in parameters.values()) - local_bytes
    return shared_bytes + clients * local_bytes


def memory_of_data(data: Embeddings) -> int:
    """Return the bytes of a data set."""
    arrays: list[NDArray[Any]] = [data.x_train, data.y_train, data.x_test, data.y_test]
    arrays += [*data.columns.values(), *data.test_columns.values()]
    return sum(values.nbytes for values in arrays)


@dataclass(frozen=True)
class GridMemory:
    """The bytes that a grid needs on one machine.

    Attributes:
        data: the data sets. They are in this process, or under Ray in the object store, which all
            workers read.
        other: all else that does not depend on the number of cells: code and references, and under
            Ray also this process and Ray's own processes.
        largest: the cell that needs most.
        cell: what that cell needs.
        parallel: how many cells run at a time.
    """

    data: int
    other: int
    largest: Trial
    cell: CellMemory
    parallel: int

    @property
    def total(self) -> int:
        """The bytes that the grid needs while as many cells run as may run at a time."""
        return self.data + self.other + self.parallel * self.cell.total

    def show(self, console: Console) -> None:
        """Print the memory of the grid and its parts."""
        cells = counted(self.parallel, "cell")
        print_line(
            console,
            f"memory: about {in_words(self.total)} on one machine: data {in_words(self.data)}, "
            f"code and services {in_words(self.other)}, {cells} at a time with up to "
            f"{in_words(self.cell.total)} each",
        )
        print_line(
            console,
            f"memory of a cell of {self.largest.cell.label}: processes "
            f"{in_words(self.cell.processes)}, examples {in_words(self.cell.examples)}, models and "
            f"noise {in_words(self.cell.model)}, statistics {in_words(self.cell.statistics)}",
        )


def memory_of_grid(prepared: Prepared, *, in_process: bool) -> GridMemory:
    """Return the memory that a grid needs on one machine.

    Args:
        prepared: the grid.
        in_process: whether it runs in this process, and not on workers.
    """
    cells: dict[tuple[object, ...], tuple[CellMemory, Trial]] = {}
    # A tuned cell trains with one set of parameters after the other.
    for trial in chain.from_iterable(trial.candidate_trials for trial in prepared.trials):
        cell = trial.cell
        # Budget, seed and partition hardly change what a cell needs.
        key = (cell.algorithm, str(cell.params), trial.data_key, trial.sizes)
        if key not in cells:
            processes = 1 if in_process else len(trial.sizes)
            cells[key] = (memory_of_cell(trial, processes), trial)
    cell_memory, largest = max(cells.values(), key=lambda pair: pair[0].total)
    data = sum(map(memory_of_data, prepared.data.values()))
    if in_process:
        return GridMemory(data, LIBRARIES + REPORT, largest, cell_memory, 1)
    numbers = max(
        min(trial.train_rows, MOST_TRAIN_ROWS) * trial.task.dim for trial in prepared.trials
    )
    other = LIBRARIES + PROCESS + RAY + REFERENCE_BYTES * numbers
    return GridMemory(data, other, largest, cell_memory, prepared.at_a_time)


def machine_memory() -> int:
    """Return the bytes of memory of this machine, or of the container that this process is in."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _LIMITS:
        with suppress(OSError, ValueError):  # the text "max" stands for no limit
            memory = min(memory, int(Path(path).read_text()))
    return memory


def check_memory(prepared: Prepared, *, in_process: bool) -> None:
    """Refuse a grid that needs more memory than this machine has.

    Args:
        prepared: the grid.
        in_process: whether it runs in this process, and not on workers.

    Raises:
        UserError: the machine has too little memory; the hint says what would fit.
    """
    need = memory_of_grid(prepared, in_process=in_process)
    available = machine_memory()
    if need.total <= available:
        return
    cell = need.largest.cell
    cells = "a cell"
    if need.parallel > 1:
        cells = f"{need.parallel} cells at a time"
    # Half a MiB is added so that the missing memory is rounded up.
    problem = (
        f"this machine has {in_words(available)} of memory, and {cells} of {cell.label} on "
        f"{cell.dataset.display} would need "
        f"{in_words(need.total - available + 2**19)} more"
    )
    raise UserError(prepared.grid.location(), problem, _what_fits(need, available))


def _what_fits(need: GridMemory, available: int) -> str:
    """Return a hint with the number of cells at a time, of clients or of examples that fits."""
    room = available - need.data - need.other
    fitting = room // need.cell.total
    if fitting >= 1:
        return f"give `max_parallel` {fitting}"
    trial = need.largest
    in_one_process = need.cell.total - need.cell.processes + PROCESS
    if len(trial.sizes) > 1 and in_one_process <= room:
        return f"give resources: {{clients_per_actor: {trial.cell.clients}}}"
    # Data and examples grow with the number of training rows; the rest does not.
    growing = need.data + need.cell.examples
    fixed = need.other + need.cell.total - need.cell.examples
    rows = int(trial.train_rows * (available - fixed) / growing)
    if rows < trial.task.classes:
        return "use a machine with more memory"
    return f"give the data set `limit: {rows}`, or use a machine with more memory"


def in_words(size: int) -> str:
    """Return a number of bytes in words."""
    if size < 2**30:
        return f"{size / 2**20:.0f} MiB"
    return f"{size / 2**30:.1f} GiB"
