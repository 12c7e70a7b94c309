"""Defines the keys of a grid file as frozen pydantic models: types, defaults and meanings.

The reference page of the grid is generated from the docstrings here. Each grid also stores where
its values came from (:class:`Origin`), so that a message can name the file and line.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    PrivateAttr,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fedsim import files
from fedsim.data.spec import DatasetSpec, EncoderSpec
from fedsim.models.probe import PROBE_C
from fedsim.partition import PartitionSpec
from fedsim.plugins.registry import EXTERNAL, name_of, registered_name
from fedsim.privacy.plan import MOST_DELTA, Trust, Unit
from fedsim.privacy.selection import Distribution
from fedsim.words import json_number

MOST_OF_A_RANGE = 1000
"""The largest number of seeds that one range such as ``0-4`` may stand for."""
MANY_CELLS = 5000
"""The number of cells above which a grid runs only after confirmation."""
SECONDS_OF = {"s": 1, "m": 60, "h": 3600, "d": 86400}
"""The length of each unit of time in seconds."""
Loc = tuple[str | int, ...]
"""The path of a key in a grid: ``("clients", 1)`` is the second number of clients."""
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Origin:
    """The source of the values of a grid, from which messages name the place of a key.

    Two grids with different origins may still be equal.

    Attributes:
        file: The grid file; "" if the grid is no file.
        data: The plain values that were validated, with overrides.
        lines: The line of every key of the file.
        overrides: The keys that the user replaced.
    """

    file: str = field(default="", compare=False)
    data: Any = field(default=None, compare=False)
    lines: Mapping[Loc, int] = field(default_factory=dict, compare=False)
    overrides: tuple[Loc, ...] = field(default=(), compare=False)

    def location(self, loc: Loc) -> str:
        """Return ``file:line: key[i].key`` for a key, or ``set KEY`` for one that was replaced."""
        written = loc
        if self.data is not None:
            written = self._written(loc)
        key = _key_text(written)
        if any(written[: len(path)] == path for path in self.overrides):
            return f"set {key}"
        place = f"{self.file}:{self._line_of(written)}".rstrip(":")
        return ": ".join(filter(None, [place, key])) or "grid"

    def _written(self, loc: Loc) -> Loc:
        """Return a key path without the parts that validation added to what the user wrote."""
        written = []
        value = self.data
        for position, part in enumerate(loc, 1):
            is_last = position == len(loc)
            if isinstance(value, Mapping) and (part in value or is_last):
                value = value.get(part)
            elif isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
                value = value[part]
            else:
                # Validation added this part, such as the kind of an entry or the index of a
                # value that the user wrote without a list.
                continue
            written.append(part)
        return tuple(written)

    def _line_of(self, loc: Loc) -> str:
        """Return the line of a key, or of the innermost known key around it; "" without any."""
        for length in range(len(loc), 0, -1):
            if loc[:length] in self.lines:
                return str(self.lines[loc[:length]])
        return ""


def _key_text(loc: Loc) -> str:
    """Return a key path as text, such as ``algorithms[0].params``."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}"
    return text.lstrip(".")


def listed(value: Any) -> Any:
    """Return the values of an axis as a list or tuple; a single value counts as a list of one."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return value
    return [value]


def points_of(axes: Mapping[str, Iterable[_Item]]) -> list[dict[str, _Item]]:
    """Return all points, each with one value per axis; the last axis varies fastest."""
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def settings_of(params: Mapping[str, Any], tuning: Tuning | None) -> list[dict[str, Any]]:
    """Return the sets of parameters that a cell trains with: one for each point of its tuning.

    A cell that is not tuned has one set.
    """
    if tuning is None:
        return [dict(params)]
    return [{**params, **point} for point in tuning.points]


def _without_ranges(value: Any) -> list[Any]:
    """Return an axis of whole numbers with each range such as ``0-4`` written out.

    Raises:
        ValueError: A range is empty or stands for too many numbers.
    """
    numbers: list[Any] = []
    for item in listed(value):
        ends = None
        if isinstance(item, str):
            ends = re.fullmatch(r"(\d{1,18})-(\d{1,18})", item)
        if ends is None:
            numbers.append(item)
            continue
        first = int(ends[1])
        last = int(ends[2])
        if not 0 <= last - first < MOST_OF_A_RANGE:
            raise ValueError(
                f"'{item}' is not a range of up to {MOST_OF_A_RANGE} numbers; give one such "
                "as 0-4, which is 0, 1, 2, 3, 4"
            )
        numbers += range(first, last + 1)
    return numbers


def _in_seconds(value: Any) -> Any:
    """Return a time such as ``2h`` in seconds, and any other value as it is."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([\d.]+)\s*([smhd])\s*", value)
    if match is None:
        return value
    return float(match[1]) * SECONDS_OF[match[2]]


def _epsilon_value(value: Any) -> Any:
    """Return a value of ε, with JSON's word ``inf`` as infinity.

    Raises:
        ValueError: It is 0, which some take for "no noise" and which would be infinite noise.
    """
    if value == 0:
        raise ValueError(
            "0 would be infinite noise; give a number above 0, or .inf, which is no noise "
            "and no privacy"
        )
    if value == "inf":
        return float("inf")
    return value


class _Model(BaseModel):
    """A frozen model that refuses unknown keys and writes infinity as a JSON string."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class GroupUnit(_Model):
    """A unit of privacy that is a group: all examples of one client with one value of a column.

    Attributes:
        column: The column whose values are the groups, such as a patient's or a lesion's id.
    """

    column: str = Field(min_length=1)

    @field_validator("column")
    @classmethod
    def _is_no_other_unit(cls, column: str) -> str:
        """Refuse a column whose name is that of another unit."""
        if column in get_args(Unit):
            raise ValueError(
                f"a column called '{column}' would be taken for another unit; rename it"
            )
        return column


Real = Annotated[float, Field(strict=True)]
Whole = Annotated[int, Field(strict=True)]
Count = Annotated[Whole, Field(ge=1)]
Positive = Annotated[Real, Field(gt=0, allow_inf_nan=False)]
Epsilon = Annotated[
    float,
    BeforeValidator(_epsilon_value),
    Field(gt=0, strict=True),
    PlainSerializer(json_number, when_used="json"),
]
Axis = Annotated[tuple[_Item, ...], BeforeValidator(listed), Field(min_length=1)]
"""The values of a grid's axis. A grid file may give a single value without a list."""
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]
Seeds = Annotated[tuple[Seed, ...], BeforeValidator(_without_ranges), Field(min_length=1)]
Device = Literal["auto", "cpu", "cuda"]


MOST_PER_CLASS = 1000
"""The default number of synthetic examples of one class is at most this."""
MOST_SYNTHETIC = 20_000
"""The default number of synthetic examples of all classes is at most this."""
SYNTHETIC_C = 0.01
"""The default inverse penalty of a probe that is trained on synthetic examples."""
FEW_FEATURES = 384
"""The default inverse penalty is larger if there are fewer features than this."""
ENOUGH_ROWS = 0.3
"""The default inverse penalty is smaller if there are fewer real examples per class and feature."""


class Evaluation(_Model):
    """How generators are evaluated.

    Attributes:
        per_class: The number of synthetic examples per class that the probe is trained on.
            Default: four per feature, but at most 1,000, and at most 20,000 in all classes.
        probe_c: The inverse strength of the probe's penalty. Default: 0.01; it is larger with few
            features and smaller with few real examples.
        per_client: Whether each client's own generator is evaluated too, on test examples as that
            client sees them.
        personal: Whether each client's own classifier, interpolated with the shared one, is
            evaluated too, and with which weight. ``synthetic``: each client takes the weight that
            is best on fresh synthetic examples, weighted by its label shares. ``held-out``: all
            clients take one weight, the best on their real validation examples, as in DP-CVAE.
            These are a fifth of each client's training examples, which nothing trains on. The
            choice is not private. A number in [0, 1]: all clients take this weight.
        evaluators: The evaluators of synthetic embeddings beside the linear probe: ``knn``,
            ``mlp``, ``fidelity``.
        unseen: A site that takes no part in training. All scores are then computed on its test
            examples. ``each``: every site in turn.
    """

    per_class: Annotated[Whole, Field(ge=1, le=10**6)] | None = None
    probe_c: Positive | None = None
    per_client: bool = Field(default=False, strict=True)
    personal: (
        Literal["synthetic", "held-out"] | Annotated[float, Field(ge=0, le=1, strict=True)] | None
    ) = None
    evaluators: Annotated[tuple[str, ...], BeforeValidator(listed)] = ("knn", "fidelity")
    unseen: str | None = Field(default=None, min_length=1)

    def rows_per_class(self, dim: int, classes: int) -> int:
        """Return the number of synthetic examples of each class that the probe is trained on.

        Args:
            dim: The number of features.
            classes: The number of classes.
        """
        if self.per_class is not None:
            return self.per_class
        return max(1, min(4 * dim, MOST_PER_CLASS, MOST_SYNTHETIC // classes))

    def synthetic_c(self, rows: int, dim: int, classes: int) -> float:
        """Return the inverse strength of the penalty of a probe trained on synthetic examples.

        The default is ``0.01 max(1, 384 / dim) min(1, rows / (0.3 dim classes))²``.

        Args:
            rows: The number of real training examples.
            dim: The number of features.
            classes: The number of classes.
        """
        if self.probe_c is not None:
            return self.probe_c
        for_few_features = max(1.0, FEW_FEATURES / dim)
        enough_rows = ENOUGH_ROWS * dim * classes
        for_few_rows = min(1.0, rows / enough_rows)
        return SYNTHETIC_C * for_few_features * for_few_rows**2

    @property
    def has_validation(self) -> bool:
        """Return whether a part of each client's training examples is held out for validation."""
        return self.personal == "held-out"

    @property
    def real_c(self) -> float:
        """Return the inverse penalty of all other probes, such as a method's or an evaluator's."""
        return self.probe_c or PROBE_C

    @model_validator(mode="after")
    def _unseen_site_has_no_client(self) -> Evaluation:
        """Refuse scores of clients where all test examples are of an unseen site."""
        if self.unseen and (self.per_client or self.personal is not None):
            raise ValueError(
                "an unseen site's rows are no client's; remove unseen, or per_client and personal"
            )
        return self


class Privacy(_Model):
    """Where noise comes from.

    Attributes:
        noise: The source of noise. ``seeded``: it follows from the cell's seed. Anyone can repeat a
            result, and nobody may release what the cell produced. ``secret``: it comes from the
            operating system's entropy, separately for each cell, and is kept only in the checkpoint
            of a running cell.
    """

    noise: Literal["seeded", "secret"] = "seeded"


class AuditSpec(_Model):
    """How every claim of the grid is audited beside its cells; an audit changes no score.

    Attributes:
        pairs: The number of pairs of trainings per claim.
        rounds: The number of rounds of each training, if the algorithm has rounds. The noise that
            the claim needs is solved for this number.
    """

    pairs: Count = 500
    rounds: Count = 6


class Tuning(_Model):
    """How the parameters of a cell are chosen: the best of several trainings wins.

    Each training draws its values uniformly from the points of a space. A ``free`` search differs:
    it trains every point once, on all examples and with the whole budget, and keeps the point that
    scores best on test examples. No budget pays for that.

    Attributes:
        space: The values of each tuned parameter.
        trials: The mean number of trainings.
        distribution: The distribution of that number.
        held_out: The probability with which a unit is held out of training to score trainings.
        free: Whether the search is free.
    """

    space: dict[str, tuple[Any, ...]]
    trials: float
    distribution: Distribution
    held_out: float
    free: bool = False

    @property
    def points(self) -> list[dict[str, Any]]:
        """Return all points of the space; the first value of each parameter comes first."""
        return points_of(self.space)


Curve = Literal["default", "tuned", "free"]
"""How a tuned algorithm runs: with its entry's parameters, privately tuned, or freely tuned."""


class Tune(_Model):
    """Parameters that are tuned within the budget: the best of several private trainings is kept.

    Attributes:
        params: The values to choose from, by parameter. An algorithm without any of these
            parameters is not tuned.
        trials: The mean number of trainings of a cell, >= 1.
        distribution: The distribution of that number: ``geometric``, or ``logarithmic``, which is
            cheaper and more often a single training.
        held_out: The probability with which a unit is held out of training, to score trainings.
        curves: The ways in which a tuned algorithm runs. ``tuned``: tuned within its budget.
            ``default``: with the parameters of its entry. ``free``: tuned on test examples, which
            its budget does not pay for.
    """

    params: dict[str, Axis[Any]] = {}
    trials: Annotated[Real, Field(ge=1, le=1000)] = 10.0
    distribution: Distribution = "geometric"
    held_out: Annotated[Real, Field(gt=0, lt=1)] = 0.1
    curves: Axis[Curve] = ("tuned",)

    def of(self, space: dict[str, tuple[Any, ...]], *, free: bool) -> Tuning:
        """Return the tuning of one algorithm over a space.

        A free search depends on its space alone, so its other values are the defaults.
        """
        source = self
        if free:
            source = Tune()
        values = source.model_dump(include={"trials", "distribution", "held_out"})
        return Tuning(**values, space=space, free=free)


class Resources(_Model):
    """Where cells run, and what is kept; results change in their last digits at most.

    Attributes:
        clients_per_actor: How many clients one actor hosts. ``all``: there is one actor per cell.
            ``auto``: the scheduler chooses.
        cpus_per_actor: The number of CPUs that an actor takes; it may be a fraction.
        gpus_per_actor: The share of a GPU that an actor takes (0.25 puts four actors on one GPU),
            or a whole number of GPUs.
        device: What an actor computes on. ``auto``: on its GPU if it has a share of one, otherwise
            on the CPU. ``cpu``, ``cuda``: always on this device.
        cell_timeout: The number of seconds after which a running cell fails. A text such as ``2h``
            is allowed too.
        save_generators: Whether the run folder keeps the generator of every cell, for
            ``fedsim synth``.
    """

    clients_per_actor: Literal["auto", "all"] | Count = "auto"
    cpus_per_actor: Positive = 1.0
    gpus_per_actor: Annotated[Real, Field(ge=0, le=1)] | Count = 0.0
    device: Device = "auto"
    cell_timeout: (
        Annotated[Real, BeforeValidator(_in_seconds), Field(gt=0, allow_inf_nan=False)] | None
    ) = None
    save_generators: bool = Field(default=True, strict=True)

    @model_validator(mode="after")
    def _cuda_needs_a_gpu(self) -> Resources:
        """Refuse actors that compute on a GPU and have none."""
        if self.device == "cuda" and not self.gpus_per_actor:
            raise ValueError(
                "device: cuda needs a GPU, and gpus_per_actor is 0; give gpus_per_actor: 1 or a "
                "part of 1, or give device: auto"
            )
        return self


class AlgorithmEntry(_Model):
    """One entry of ``algorithms``: a name, a mapping, or ``{rows: FILE}`` for external samples.

    See :mod:`fedsim.methods.given` for external samples.

    Attributes:
        name: A registered name, an entry point, ``pkg.module:Class`` or ``file.py:Class``. In
            Python it may be a class.
        params: The parameters that differ from the algorithm's defaults.
        scan: Axes over parameters of this entry alone, beside those of the grid.
        tune: The values of tuned parameters of this entry alone, beside the grid's ``tune.params``.
        label: The name of the entry in tables and curves. Default: the name; for a path, the name
            by which its class is registered.
    """

    name: str = Field(min_length=1)
    params: dict[str, Any] = {}
    scan: dict[str, Axis[Any]] = {}
    tune: dict[str, Axis[Any]] = {}
    label: str | None = Field(default=None, min_length=1)

    @property
    def display(self) -> str:
        """Return the name of the entry in tables and curves: its label, or else its name."""
        return self.label or self.name

    @property
    def is_called_by_path(self) -> bool:
        """Return whether the entry names its class by a path, and tables would show that path."""
        path, _, class_name = self.name.rpartition(":")
        return path != "" and self.display.endswith(f"{Path(path).name}:{class_name}")

    def within(self, folder: Path) -> AlgorithmEntry:
        """Return the same entry, in which a relative path of its file starts at ``folder``.

        External samples also get the SHA-256 of their file.
        """
        if self.name == EXTERNAL:
            return self._external_within(folder)
        file, _, class_name = self.name.rpartition(":")
        if not file.endswith(".py"):
            return self
        path = files.shown(os.path.abspath(folder / file))
        update = {
            "name": f"{path}:{class_name}",
            "label": self.display,
        }
        return self.model_copy(update=update)

    def _external_within(self, folder: Path) -> AlgorithmEntry:
        """Return the entry of external samples with the path and SHA-256 of their file."""
        path = Path(os.path.abspath(folder / str(self.params.get("rows"))))
        digest = ""  # A missing file is reported when it is read.
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        params = {**self.params, "rows": files.shown(path), "sha256": digest}
        return self.model_copy(update={"params": params})

    @model_validator(mode="before")
    @classmethod
    def _as_mapping(cls, entry: Any) -> Any:
        """Return an entry as a mapping with a name: a bare name or class, or external samples."""
        if isinstance(entry, str | type):
            entry = {"name": entry}
        if not isinstance(entry, Mapping):
            return entry
        if isinstance(entry.get("name"), type):
            return _entry_of_class(entry)
        if "rows" in entry:
            return _entry_of_samples(entry)
        return entry


def _entry_of_class(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry whose name is a class with the name and the label of the class instead."""
    cls = entry["name"]
    label = registered_name(cls)
    if label is None:
        label = cls.__name__
    return {"label": label, **entry, "name": name_of(cls)}


def _entry_of_samples(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry ``{rows: FILE}`` with its keys as parameters; the file's stem labels it."""
    params = dict(entry)
    stem = Path(str(params["rows"])).stem
    label = params.pop("label", stem)
    return {
        "name": EXTERNAL,
        "params": params,
        "label": label,
    }


class Published(_Model):
    """A number that a paper reports, ``{published: NUMBER, …}``: it is shown and runs nothing.

    Attributes:
        published: The number.
        measure: The measure that it is a value of, such as ``accuracy``.
        epsilon: The ε for which the source reports it. ``.inf`` means no privacy.
        source: Where it was published, such as ``Author 2025, Table 2``.
        label: The name of its method in tables and curves.
        dataset: The data set that it belongs to, as tables call it; what tables add in brackets
            may be left out. Default: all data sets of the grid.
        delta: The δ for which the source reports it.
    """

    published: Annotated[Real, Field(allow_inf_nan=False)]
    measure: str
    epsilon: Epsilon
    source: str = Field(min_length=1)
    label: str = Field(min_length=1)
    dataset: str | None = Field(default=None, min_length=1)
    delta: Annotated[Real, Field(gt=0, lt=1)] | None = None

    @property
    def display(self) -> str:
        """Return the name of the number in tables and curves, with its source."""
        label = self.label.removesuffix(" (published)")
        return f"{label} (published, not run here: {self.source})"

    def belongs_to(self, dataset: str) -> bool:
        """Return whether the number belongs to a data set, given by its name in tables."""
        return self.dataset is None or f"{dataset} (".startswith(f"{self.dataset} (")

    def within(self, folder: Path) -> Published:
        """Return the entry as it is, because it names no file."""
        return self


def _kind_of_entry(entry: Any) -> str:
    """Return the tag of the model that reads an entry of ``algorithms``."""
    if isinstance(entry, Published) or (isinstance(entry, Mapping) and "published" in entry):
        return "a published number"
    return "an algorithm"


Entry = Annotated[
    Annotated[AlgorithmEntry, Tag("an algorithm")]
    | Annotated[Published, Tag("a published number")],
    Discriminator(_kind_of_entry),
]
"""One entry of ``algorithms``. Its tag is never a key that a user wrote, so messages skip it."""


class Grid(_Model):
    """A grid file: which cells to run. An axis takes one value or a list of values.

    Attributes:
        name: The name of the grid and of its run folder. Default: the file's stem.
        dataset: The axis of data sets.
        public: A data set whose examples are all public, labelled or not, for methods that use
            public examples. They are embedded as each data set is.
        encoder: The axis of encoders, which turn images into embeddings. A data set that has
            embeddings already is scanned once.
        partition: The scheme that divides examples among clients.
        algorithms: The axis of algorithms. Published numbers may stand among them.
        alpha: The axis of Dirichlet concentrations, > 0.
        clients: The axis of numbers of clients.
        epsilon: The axis of privacy budgets ε, > 0. ``.inf`` means no privacy.
        seeds: The axis of seeds. ``0-4`` stands for five seeds.
        delta: The δ of every budget.
        unit: What one budget protects: ``example``, ``client``, or ``{column: NAME}``, which is all
            examples of a client with one value of the column.
        trust: Who may see which messages. ``aggregate``: only their sum over clients is seen.
            ``silo``: every message is seen.
        privacy: Where noise comes from.
        scan: Axes over algorithm parameters: values by parameter. An algorithm without the
            parameter runs once.
        tune: Parameters whose best values are searched for within the budget.
        evaluation: How generators are evaluated.
        audit: How claims are audited. None: they are not audited.
        check: Whether private methods are checked beside their cells, and how thoroughly. None:
            they are not checked.
        resources: Where cells run.
    """

    name: str = Field(default="grid", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    dataset: Axis[DatasetSpec] = (DatasetSpec(name="digits"),)
    public: DatasetSpec | None = None
    encoder: Annotated[tuple[EncoderSpec, ...], BeforeValidator(listed)] = ()
    partition: PartitionSpec = PartitionSpec()
    algorithms: Axis[Entry]
    alpha: Axis[Positive] = (0.3,)
    clients: Axis[Count] = (10,)
    epsilon: Axis[Epsilon] = (1.0,)
    seeds: Seeds = (0,)
    delta: Annotated[Real, Field(gt=0, le=MOST_DELTA)] = 1e-4
    unit: Literal["example", "client"] | GroupUnit = "example"
    trust: Trust = "aggregate"
    privacy: Privacy = Privacy()
    scan: dict[str, Axis[Any]] = {}
    tune: Tune = Tune()
    evaluation: Evaluation = Evaluation()
    audit: AuditSpec | None = None
    check: Literal["quick", "full"] | None = None
    resources: Resources = Resources()
    _source: Origin = PrivateAttr(default_factory=Origin)

    def model_post_init(self, context: Any) -> None:
        """Keep the context of the validation, which says where the values came from."""
        self._source = context or Origin()

    @field_validator("unit", mode="before")
    @classmethod
    def _column_needs_a_mapping(cls, unit: Any) -> Any:
        """Refuse the bare name of a column, for which pydantic's own message is no help."""
        if not isinstance(unit, str) or unit in ("example", "client"):
            return unit
        column = unit
        if unit in get_args(Unit):
            column = "NAME"
        raise ValueError(
            f"'{unit}' is not a unit; give example or client, or give unit: {{column: {column}}} "
            "to protect all rows with one value of that column together"
        )

    @field_validator("unit")
    @classmethod
    def _partition_keeps_units_together(
        cls,
        unit: str | GroupUnit,
        info: ValidationInfo,
    ) -> str | GroupUnit:
        """Refuse a group unit if the partition keeps the groups of another column together."""
        partition = info.data.get("partition")
        together = partition and partition.together
        if isinstance(unit, GroupUnit) and together not in (None, unit.column):
            raise ValueError(
                f"a group is all rows of one '{unit.column}', partition.together keeps those "
                f"of '{together}'; give one column"
            )
        return unit

    @property
    def running(self) -> dict[int, AlgorithmEntry]:
        """Return the entries of ``algorithms`` that run, by their position."""
        return {
            position: entry
            for position, entry in enumerate(self.algorithms)
            if isinstance(entry, AlgorithmEntry)
        }

    @property
    def most_cells(self) -> int:
        """Return an upper bound on the number of cells.

        ``evaluation.unseen: each`` counts as one site, and every algorithm as tuned and as having
        each scanned parameter.
        """
        variants = 0
        for entry in self.running.values():
            axes = self.scan | entry.scan
            variants += prod(map(len, axes.values()))
        shared_axes = (
            self.sets,
            self.alpha,
            self.clients,
            self.epsilon,
            self.seeds,
            self.tune.curves,
        )
        return prod(map(len, shared_axes)) * variants

    @property
    def sets(self) -> tuple[DatasetSpec, ...]:
        """Return every data set with every encoder, in the order of the axes."""
        return tuple(encoded for spec in self.dataset for encoded in spec.encoded_by(self.encoder))

    def public_beside(self, dataset: DatasetSpec) -> DatasetSpec | None:
        """Return the public data set, embedded as ``dataset`` is, or None without a public one.

        If ``dataset`` has embeddings already, the grid's first encoder embeds the public one.
        """
        if self.public is None:
            return None
        encoders = self.encoder[:1]
        if dataset.encoder is not None:
            encoders = (dataset.encoder,)
        return self.public.encoded_by(encoders)[0]

    def place_of(self, dataset: DatasetSpec, where: str, *, public: bool = False) -> str:
        """Return the text that names a data set in a message.

        Args:
            dataset: One of ``sets``.
            where: The part of the data set that the message is about. A text that begins with
                ``encoder: `` is about its encoder.
            public: Whether the message is about the public data set beside it.
        """
        position = 0
        while dataset not in self.dataset[position].encoded_by(self.encoder):
            position += 1
        spec = self.dataset[position]
        loc: Loc = ("dataset", position)
        if public and self.public is not None:
            spec = self.public
            loc = ("public",)
        key, _, rest = where.partition(": ")
        if key == "encoder":
            where = rest
            if spec.encoder is not None:
                loc = (*loc, "encoder")
            elif dataset.encoder in self.encoder:
                loc = ("encoder", self.encoder.index(dataset.encoder))
            else:
                loc = ("encoder", 0)
        place = self.location(*loc)
        return ": ".join(filter(None, [place, where]))

    @property
    def unit_column(self) -> str | None:
        """Return the column whose values are the units, or None if the unit is not a group."""
        if isinstance(self.unit, GroupUnit):
            return self.unit.column
        return None

    @property
    def unit_kind(self) -> Unit:
        """Return the kind of unit: ``example``, ``client`` or ``group``."""
        if isinstance(self.unit, GroupUnit):
            return "group"
        return self.unit

    @property
    def division(self) -> PartitionSpec:
        """Return the partition scheme, which keeps the examples of a group unit together."""
        if self.unit_column is None:
            return self.partition
        return self.partition.model_copy(update={"together": self.unit_column})

    def location(self, *loc: str | int) -> str:
        """Return the text that names a key in a message.

        ``grid.location("clients", 1)`` is for example ``g.yaml:5: clients[1]``.
        """
        return self._source.location(loc)


class Cell(_Model):
    """One point of a grid; it can be written as JSON.

    Attributes:
        cell_id: 16 hex digits. Two cells have the same id exactly if everything that can change the
            result is equal: the training, the evaluation and the code that evaluates.
        training_id: 16 hex digits of everything that can change the training. Cells that differ
            only in their evaluation share it.
        source: The hash of the code that trains; see :mod:`fedsim.plugins.code_hash`.
        label: The name of the algorithm with these parameters in tables and curves.
        algorithm: The name of the algorithm as the grid gives it.
        params: All parameters, including defaults.
        dataset: The data set with its encoder.
        dataset_hash: The fingerprint of the data. None in a package that may be released.
        public, public_hash, public_licence: The name, fingerprint and licence of the public
            examples, if the algorithm uses them.
        partition: The scheme that divides examples among clients.
        alpha: The Dirichlet concentration, also for schemes that do not use it.
        clients: The number of clients.
        epsilon: The ε of the budget; ``inf`` without privacy. None if ε has no meaning for the
            algorithm.
        delta: The δ of the budget.
        unit: The kind of unit that the budget protects.
        unit_column: The column whose values are the units, if the unit is a group.
        trust: Who may see which messages.
        noise: Where noise comes from.
        seed: The root of the cell's random numbers, and the seed of the partition.
        evaluation: How the generator is evaluated.
        tuning: How some of ``params`` are chosen. Until they are chosen, they have the first values
            of the space. None: nothing is tuned.
    """

    cell_id: str
    training_id: str = ""
    source: str
    label: str
    algorithm: str
    params: dict[str, Any]
    dataset: DatasetSpec
    dataset_hash: str | None
    public: str | None = None
    public_hash: str | None = None
    public_licence: str | None = None
    partition: PartitionSpec
    alpha: float
    clients: int
    epsilon: float | None
    delta: float
    unit: Unit
    unit_column: str | None = None
    trust: Trust
    noise: Literal["seeded", "secret"]
    seed: int
    evaluation: Evaluation
    tuning: Tuning | None = None

    @property
    def unit_name(self) -> str:
        """Return the unit as results name it: ``example``, ``client``, or a group's column."""
        return self.unit_column or self.unit

    @property
    def concentration(self) -> float | None:
        """Return alpha, or None if the partition scheme does not use it."""
        if self.partition.uses_alpha:
            return self.alpha
        return None

    @property
    def data_key(self) -> str:
        """Return the key of the data that its clients share, see :func:`data_key`."""
        return data_key(self.dataset, self.evaluation)


def data_key(dataset: DatasetSpec, evaluation: Evaluation) -> str:
    """Return the key of a data set, which also names the site that is left out of training."""
    if evaluation.unseen is None:
        return dataset.key
    return f"{dataset.key} without {evaluation.unseen}"


def shown(dataset: DatasetSpec, unseen: str | None) -> str:
    """Return the name of a data set in tables, with the site that is left out of training."""
    if unseen is None:
        return dataset.display
    return f"{dataset.display} ({unseen} unseen)"
