"""A grid file as frozen models: its values, their types, and what they mean; and where each value
stands, for messages.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fedsim import files
from fedsim.data.spec import DatasetSpec, EncoderSpec
from fedsim.models.probe import PROBE_C
from fedsim.partition import PartitionSpec
from fedsim.plugins.registry import EXTERNAL, name_of
from fedsim.privacy.plan import MOST_DELTA, Trust, Unit
from fedsim.privacy.selection import Distribution
from fedsim.words import json_number

MOST_OF_A_RANGE = 1000
"""Seeds that one range may name."""
MANY_CELLS = 5000
"""Cells from which on a grid is only run if that is confirmed."""
Loc = tuple[str | int, ...]
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Origin:
    """Where the values of a grid came from, to name places in messages; no part of what makes two
    grids equal.

    A file or none, what was validated, the line of every key path of the file, and the key paths
    that were replaced.
    """

    file: str = field(default="", compare=False)
    data: Any = field(default=None, compare=False)
    lines: Mapping[Loc, int] = field(default_factory=dict, compare=False)
    overrides: tuple[Loc, ...] = field(default=(), compare=False)

    def location(self, loc: Loc) -> str:
        """``file:line: key[i].key``; the parts of ``loc`` that validation added to what the user
        wrote are left out.
        """
        if self.data is None:
            written = loc
        else:
            written = self._written(loc)
        text = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in written
        ).lstrip(".")
        if any(written[: len(key)] == key for key in self.overrides):
            return f"set {text}"
        line = next(
            (
                self.lines[written[:n]]
                for n in range(len(written), 0, -1)
                if written[:n] in self.lines
            ),
            "",
        )
        return ": ".join(filter(None, (f"{self.file}:{line}".rstrip(":"), text))) or "grid"

    def _written(self, loc: Loc) -> Loc:
        kept = []
        at = self.data
        for n, part in enumerate(loc, 1):
            if isinstance(at, Mapping) and (part in at or n == len(loc)):
                at = at.get(part)
            elif isinstance(at, list | tuple) and isinstance(part, int) and part < len(at):
                at = at[part]
            else:
                continue
            kept.append(part)
        return tuple(kept)


def listed(given: Any) -> Any:
    """The values of an axis, which may be given as one."""
    if given is None:
        return []
    if isinstance(given, list | tuple):
        return given
    return [given]


def _ranges(given: Any) -> list[Any]:
    """Whole numbers, and ranges of them such as ``0-4``, both ends included."""
    numbers: list[Any] = []
    for one in listed(given):
        if isinstance(one, str):
            ends = re.fullmatch(r"(\d{1,18})-(\d{1,18})", one)
        else:
            ends = None
        if ends and not 0 <= int(ends[2]) - int(ends[1]) < MOST_OF_A_RANGE:
            raise ValueError(
                f"'{one}' is not a range of up to {MOST_OF_A_RANGE} numbers; give one such "
                "as 0-4, which is 0, 1, 2, 3, 4"
            )
        if ends:
            numbers += range(int(ends[1]), int(ends[2]) + 1)
        else:
            numbers += [one]
    return numbers


def _seconds(given: Any) -> Any:
    """``2h`` as seconds."""
    if isinstance(given, str):
        parts = re.fullmatch(r"\s*([\d.]+)\s*([smhd])\s*", given)
    else:
        parts = None
    if parts is None:
        return given
    return float(parts[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[parts[2]]


def _budget(given: Any) -> Any:
    """Infinity, which JSON has as a word; 0, which some take for no noise, is none."""
    if given == 0:
        raise ValueError(
            "0 would be infinite noise; give a number above 0, or .inf, which is no noise "
            "and no privacy"
        )
    if given == "inf":
        return float("inf")
    return given


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class GroupUnit(_Model):
    """A unit that is a group of one client's rows: all that have one value of a column (a
    patient's, a lesion's).
    """

    column: str = Field(min_length=1)

    @field_validator("column")
    @classmethod
    def _no_other_unit(cls, column: str) -> str:
        if column in get_args(Unit):
            raise ValueError(
                f"a column called '{column}' would be taken for another unit; rename it"
            )
        return column


Real = Annotated[float, Field(strict=True)]
Whole = Annotated[int, Field(strict=True)]
Epsilon = Annotated[
    float,
    BeforeValidator(_budget),
    Field(gt=0, strict=True),
    PlainSerializer(json_number, when_used="json"),
]
Axis = Annotated[tuple[_Item, ...], BeforeValidator(listed), Field(min_length=1)]
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]
Seeds = Annotated[tuple[Seed, ...], BeforeValidator(_ranges), Field(min_length=1)]
Device = Literal["auto", "cpu", "cuda"]


MOST_OF_A_CLASS = 1000
MOST_OF_ALL = 20_000
"""Synthetic rows that a probe is trained on where a grid does not say how many."""
SYNTHETIC_C = 0.01
NARROW = 384
MANY = 0.3
"""Inverse penalty of a synthetic rows' probe, the features below which it is more, the real rows a
class and feature below which less.
"""


class Evaluation(_Model):
    """How generators are judged.

    Attributes:
        per_class: synthetic rows per class that the probe is trained on; default:
            :meth:`rows_per_class`.
        probe_c: inverse strength of the probe's penalty; default: 0.01, more of few features, less
            of few real rows.
        per_client: also judge each client's own generator, on test rows as that client sees them.
        personal: also judge each client's own classifier interpolated with the shared one; how its
            weight is chosen: ``synthetic``, for each client the best one on fresh synthetic rows
            weighted by its label shares (DP-CVAE chooses one for all, on real validation
            examples); or a number in [0, 1], which all clients take.
        readouts: what reads synthetic embeddings beside the linear probe: ``knn``, ``mlp``,
            ``fidelity``.
        unseen: a site that takes no part in training, and on whose test rows everything is judged;
            ``each``: every site in turn.
    """

    per_class: Annotated[Whole, Field(ge=1, le=10**6)] | None = None
    probe_c: Annotated[Real, Field(gt=0, allow_inf_nan=False)] | None = None
    per_client: bool = Field(default=False, strict=True)
    personal: Literal["synthetic"] | Annotated[float, Field(ge=0, le=1, strict=True)] | None = None
    readouts: Annotated[tuple[str, ...], BeforeValidator(listed)] = ("knn", "fidelity")
    unseen: str | None = Field(default=None, min_length=1)

    def rows_per_class(self, dim: int, classes: int) -> int:
        """Synthetic rows of each class: as given, else four a feature, but at most 1,000, and
        20,000 of all classes.
        """
        return self.per_class or max(1, min(4 * dim, MOST_OF_A_CLASS, MOST_OF_ALL // classes))

    def synthetic_c(self, rows: int, dim: int, classes: int) -> float:
        """The inverse strength of the probe of synthetic rows: as given, else 0.01, more of few
        features, less of few real rows.
        """
        return (
            self.probe_c
            or SYNTHETIC_C * max(1.0, NARROW / dim) * min(1.0, rows / (MANY * dim * classes)) ** 2
        )

    @property
    def real_c(self) -> float:
        """The inverse strength where a method or a readout fits a probe of its own."""
        if self.probe_c is None:
            return PROBE_C
        return self.probe_c

    @model_validator(mode="after")
    def _whose_rows(self) -> Evaluation:
        if self.unseen and (self.per_client or self.personal is not None):
            raise ValueError(
                "an unseen site's rows are no client's; remove unseen, or per_client and personal"
            )
        return self


class Privacy(_Model):
    """Where noise comes from.

    Attributes:
        noise: ``seeded``: it follows from the cell's seed, so that anyone can repeat a row, and
            nobody may release what it made; ``secret``: from the operating system's entropy, every
            cell its own, kept nowhere but in the checkpoint of a cell under way.
    """

    noise: Literal["seeded", "secret"] = "seeded"


class AuditSpec(_Model):
    """How every claim of the grid is audited, beside its cells; nothing here changes a score.

    Attributes:
        pairs: pairs of trainings a claim.
        rounds: of each of them, where the algorithm has rounds; the claim's noise is solved for
            these.
    """

    pairs: Annotated[Whole, Field(ge=1)] = 500
    rounds: Annotated[Whole, Field(ge=1)] = 6


class Tuning(_Model):
    """How a cell's parameters are chosen: the best of several trainings, each with values of the
    space that are drawn uniformly.

    A ``free`` search trains every point once, on all rows and at the whole budget, and keeps the
    best on test rows: nobody pays for it.
    """

    space: dict[str, tuple[Any, ...]]
    trials: float
    distribution: Distribution
    held_out: float
    free: bool = False

    @property
    def points(self) -> list[dict[str, Any]]:
        """All points of the space, the first values first."""
        return [
            dict(zip(self.space, point, strict=True)) for point in product(*self.space.values())
        ]


Curve = Literal["default", "tuned", "free"]


class Tune(_Model):
    """Parameters that are tuned, not scanned: each cell's are the best of several private
    trainings, whose cost is in its budget.

    Attributes:
        params: values by parameter; an algorithm without any of these is not tuned.
        trials: the mean number of trainings of a cell, >= 1.
        distribution: of that number: ``geometric``, or ``logarithmic`` (cheaper, more often a
            single training).
        held_out: the probability with which a unit is held out of training, to score trainings on.
        curves: what a tuned algorithm runs as: ``tuned``; ``default``, with the parameters of its
            entry; ``free``, tuned on test rows by a search that its budget does not pay for.
    """

    params: dict[str, Axis[Any]] = {}
    trials: Annotated[Real, Field(ge=1, le=1000)] = 10.0
    distribution: Distribution = "geometric"
    held_out: Annotated[Real, Field(gt=0, lt=1)] = 0.1
    curves: Axis[Curve] = ("tuned",)

    def of(self, space: dict[str, tuple[Any, ...]], *, free: bool) -> Tuning:
        """The tuning of one algorithm; nothing of a free one but its space decides anything."""
        if free:
            known = Tune()
        else:
            known = self
        return Tuning(
            **known.model_dump(include={"trials", "distribution", "held_out"}),
            space=space,
            free=free,
        )


class Resources(_Model):
    """Where cells run and what is kept; a result changes in its last digits at most, where clients
    are laid out in another way.

    Attributes:
        clients_per_actor: clients that one actor hosts; ``all``: one actor per cell, ``auto``: the
            scheduler's choice.
        cpus_per_actor: CPU share of an actor.
        gpus_per_actor: GPU share of an actor: 0.25 puts four on a GPU; or a whole number of GPUs.
        device: ``auto``: an actor computes on the GPU that it has a share of, and without one on
            the CPU; ``cpu``; ``cuda``.
        cell_timeout: seconds after which a cell that still runs has failed; also as text such as
            ``2h``.
        save_generators: keep every cell's generator in the run folder, for ``fedsim synth``.
    """

    clients_per_actor: Literal["auto", "all"] | Annotated[Whole, Field(ge=1)] = "auto"
    cpus_per_actor: Annotated[Real, Field(gt=0, allow_inf_nan=False)] = 1.0
    gpus_per_actor: Annotated[Real, Field(ge=0, le=1)] | Annotated[Whole, Field(ge=1)] = 0.0
    device: Device = "auto"
    cell_timeout: (
        Annotated[Real, BeforeValidator(_seconds), Field(gt=0, allow_inf_nan=False)] | None
    ) = None
    save_generators: bool = Field(default=True, strict=True)

    @model_validator(mode="after")
    def _cuda_has_a_gpu(self) -> Resources:
        if self.device == "cuda" and not self.gpus_per_actor:
            raise ValueError(
                "device: cuda with gpus_per_actor: 0 leaves actors without a GPU; give a share"
            )
        return self


class AlgorithmEntry(_Model):
    """One entry of ``algorithms``: a name, or a mapping; ``{rows: FILE}`` are external samples
    (:mod:`fedsim.methods.given`).

    Attributes:
        name: a registered name, an entry point, ``pkg.module:Class`` or ``file.py:Class``; in
            Python also a class.
        params: the parameters that differ from the algorithm's defaults.
        scan: axes over parameters of this entry alone, beside the grid's.
        tune: values of parameters of this entry alone that are tuned, beside the grid's
            ``tune.params``.
        label: what tables and curves call it; default: the name, of a path the name that its class
            is registered by.
    """

    name: str = Field(min_length=1)
    params: dict[str, Any] = {}
    scan: dict[str, Axis[Any]] = {}
    tune: dict[str, Axis[Any]] = {}
    label: str | None = Field(default=None, min_length=1)

    @property
    def display(self) -> str:
        """What it is called."""
        return self.label or self.name

    @property
    def is_called_by_path(self) -> bool:
        """Whether it is called by the file or module of its class, for want of a label."""
        called, _, class_name = self.display.rpartition(":")
        path, _, own_class = self.name.rpartition(":")
        return bool(called) and (Path(called).name, class_name) == (Path(path).name, own_class)

    def within(self, folder: Path) -> AlgorithmEntry:
        """The same algorithm with the path of its file taken from ``folder``; what it is called
        stays.
        """
        if self.name == EXTERNAL:
            path = Path(os.path.abspath(folder / str(self.params.get("rows"))))
            if path.is_file():
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                digest = ""  # what is no file is refused as it is read
            return self.model_copy(
                update={"params": {**self.params, "rows": files.shown(path), "sha256": digest}}
            )
        file, _, cls = self.name.rpartition(":")
        if not file.endswith(".py"):
            return self
        return self.model_copy(
            update={
                "name": f"{files.shown(os.path.abspath(folder / file))}:{cls}",
                "label": self.display,
            }
        )

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, given: Any) -> Any:
        if isinstance(given, type):
            given = {"name": given}
        if isinstance(given, Mapping) and isinstance(own := given.get("name"), type):
            registered = vars(own).get("name", ":")
            return {
                "label": own.__name__ if ":" in registered else registered,
                **given,
                "name": name_of(own),
            }
        if isinstance(given, Mapping) and "rows" in given:
            params = {key: value for key, value in given.items() if key != "label"}
            return {
                "name": EXTERNAL,
                "params": params,
                "label": given.get("label", Path(str(given["rows"])).stem),
            }
        if isinstance(given, str):
            return {"name": given}
        return given


class Grid(_Model):
    """A grid file: what to scan. The axes take one value or a list; a list anywhere else is just a
    list.

    Attributes:
        name: of the grid and its run folder; default: the file's stem.
        dataset: axis of data sets.
        public: a data set of which all rows are public, labelled or not, for methods that use such
            rows; embedded as each data set is.
        encoder: axis of what turns the images of data sets into embeddings; data sets that are
            embeddings already are scanned once.
        partition: the scheme that divides rows among clients.
        algorithms: axis of algorithms.
        alpha: axis of Dirichlet concentrations, > 0.
        clients: axis of numbers of clients.
        epsilon: axis of privacy budgets, > 0; ``.inf`` is no privacy.
        seeds: axis of seeds; ``0-4`` stands for five.
        delta: of the (epsilon, delta) budgets.
        unit: what one budget protects: an example, a client, or ``{column: NAME}``: all rows of a
            client that have one value of the column.
        trust: who may see what: only the sum over clients (aggregate), or every message (silo).
        privacy: where noise comes from.
        scan: axes over algorithm parameters: values by parameter; an algorithm without the
            parameter is not multiplied.
        tune: parameters whose best values are searched for within the budget.
        evaluation: how generators are judged.
        audit: how claims are audited; None: not.
        check: whether private methods are checked beside their cells, and how; None: not.
        resources: where cells run.
    """

    name: str = Field(default="grid", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    dataset: Axis[DatasetSpec] = (DatasetSpec(name="digits"),)
    public: DatasetSpec | None = None
    encoder: Annotated[tuple[EncoderSpec, ...], BeforeValidator(listed)] = ()
    partition: PartitionSpec = PartitionSpec()
    algorithms: Axis[AlgorithmEntry]
    alpha: Axis[Annotated[Real, Field(gt=0, allow_inf_nan=False)]] = (0.3,)
    clients: Axis[Annotated[Whole, Field(ge=1)]] = (10,)
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
        """The context of a validation says where the values came from."""
        self._source = context or Origin()

    @field_validator("unit", mode="before")
    @classmethod
    def _column_in_a_mapping(cls, given: Any) -> Any:
        """Refuse the bare name of a column, which pydantic would only call none of two words."""
        if not isinstance(given, str) or given in ("example", "client"):
            return given
        if given in get_args(Unit):
            column = "NAME"
        else:
            column = given
        raise ValueError(
            f"'{given}' is not a unit; give example, client, or for the rows that share a value of "
            f"a column: unit: {{column: {column}}}"
        )

    @field_validator("unit")
    @classmethod
    def _kept_together(cls, unit: str | GroupUnit, info: ValidationInfo) -> str | GroupUnit:
        partition = info.data.get("partition")
        together = partition and partition.together
        if isinstance(unit, GroupUnit) and together not in (None, unit.column):
            raise ValueError(
                f"a group is all rows of one '{unit.column}', partition.together keeps those "
                f"of '{together}'; give one column"
            )
        return unit

    @property
    def most_cells(self) -> int:
        """So many cells at most; sites that are left out one by one are counted as one, and methods
        may lack a scanned parameter.
        """
        entries = sum(
            prod(map(len, (self.scan | entry.scan).values()))
            * (len(self.tune.curves) if self.tune.params or entry.tune else 1)
            for entry in self.algorithms
        )
        return (
            prod(map(len, (self.sets, self.alpha, self.clients, self.epsilon, self.seeds)))
            * entries
        )

    @property
    def sets(self) -> tuple[DatasetSpec, ...]:
        """Every data set with every encoder, in the order of the axes."""
        return tuple(encoded for spec in self.dataset for encoded in spec.encoded_by(self.encoder))

    def public_beside(self, dataset: DatasetSpec) -> DatasetSpec | None:
        """The public data set, embedded as ``dataset`` is; where that is embeddings already, by the
        grid's encoder.
        """
        if dataset.encoder is None:
            encoders = self.encoder[:1]
        else:
            encoders = (dataset.encoder,)
        if self.public is None:
            return None
        return self.public.encoded_by(encoders)[0]

    def place_of(self, dataset: DatasetSpec, where: str, *, public: bool = False) -> str:
        """The text that names one of ``sets``, or the public rows beside it, in a message; of
        ``encoder: WHERE`` the encoder.
        """
        i = next(
            i for i, spec in enumerate(self.dataset) if dataset in spec.encoded_by(self.encoder)
        )
        if public:
            given = self.public
            loc: Loc = ("public",)
        else:
            given = self.dataset[i]
            loc = ("dataset", i)
        key, _, rest = where.partition(": ")
        if key == "encoder" and given is not None:
            shared = next((j for j, each in enumerate(self.encoder) if each == dataset.encoder), 0)
            if given.encoder is None:
                loc = (key, shared)
            else:
                loc = (*loc, key)
            where = rest
        return ": ".join(filter(None, (self.location(*loc), where)))

    @property
    def unit_column(self) -> str | None:
        """The column whose values are the units; None where the unit is no group."""
        if isinstance(self.unit, GroupUnit):
            return self.unit.column
        return None

    @property
    def unit_kind(self) -> Unit:
        """What kind of thing one budget protects."""
        if isinstance(self.unit, GroupUnit):
            return "group"
        return self.unit

    @property
    def division(self) -> PartitionSpec:
        """The partition, which keeps units together."""
        if self.unit_column is None:
            return self.partition
        return self.partition.model_copy(update={"together": self.unit_column})

    def location(self, *loc: str | int) -> str:
        """The text that names a key in a message: ``grid.location("clients", 1)`` is ``g.yaml:5:
        clients[1]``.
        """
        return self._source.location(loc)


class Cell(_Model):
    """One point of a grid; JSON-serialisable.

    Attributes:
        cell_id: 16 hex digits; equal for two cells exactly when nothing that can change the result
            differs: their training, their evaluation and the code that judges.
        training_id: the same of what can change the training: cells that differ in their evaluation
            alone share it.
        source: hash of the code that computes it, see :mod:`fedsim.plugins.code_hash`.
        label: what tables and curves call the algorithm with these parameters, defaults included.
        dataset_hash: the data's fingerprint; None in what may be released.
        public, public_hash, public_licence: name, fingerprint and licence of the public rows, where
            the algorithm uses them.
        epsilon: budget, ``inf`` without privacy; None where epsilon has no meaning for the
            algorithm.
        seed: root of the cell's seed tree, and the partition's seed.
        tuning: how some of ``params`` are chosen; before that they are the first of the space.
            None: they are given.
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
        """What a row calls the unit: ``example``, ``client``, or a group by its column."""
        return self.unit_column or self.unit

    @property
    def concentration(self) -> float | None:
        """Alpha, where the scheme has any use for it."""
        if self.partition.uses_alpha:
            return self.alpha
        return None

    @property
    def data_key(self) -> str:
        """Which data its clients share out: the data set's, or without the site that is left
        out.
        """
        return data_key(self.dataset, self.evaluation)


def data_key(dataset: DatasetSpec, evaluation: Evaluation) -> str:
    """The key of a data set, apart from that of the same one without a site."""
    if evaluation.unseen is None:
        return dataset.key
    return f"{dataset.key} without {evaluation.unseen}"


def shown(dataset: DatasetSpec, unseen: str | None) -> str:
    """What a data set is called, apart from the same one without a site."""
    if unseen is None:
        return dataset.display
    return f"{dataset.display} ({unseen} unseen)"
