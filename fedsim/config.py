"""The grid file: YAML to typed, validated models, and from there to cells, each with an id that names its result.

``load_grid`` reads and checks a file; ``expand`` makes the cells once the data are known. Every mistake is one ``UserError``
that names the place (``grid.yaml:7: epsilon[1]``, or ``--set epsilon[1]``).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fedsim.data.embeddings import Embeddings
from fedsim.data.encoder import EncoderSpec
from fedsim.data.sources import DatasetSpec
from fedsim.errors import PluginError, UserError, nearest
from fedsim.partition import PartitionSpec, check_partition
from fedsim.privacy.plan import Trust, Unit
from fedsim.registry import lookup
from fedsim.source_hash import place_of, source_hash

Loc = tuple[str | int, ...]
_Item = TypeVar("_Item")
_Option = TypeVar("_Option", bound=BaseModel)
_MOST_NODES = 100_000  # a grid file has dozens; aliases of aliases can stand for billions


# ---- values --------------------------------------------------------------------------------------------------------


def _listed(given: Any) -> Any:
    return given if isinstance(given, list | tuple) else [given]


def _distinct(values: tuple[_Item, ...]) -> tuple[_Item, ...]:
    if not values:
        raise ValueError("is empty; give at least one value")
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{_show(value)} is listed twice; remove one")
    return values


def _no_flag(given: Any) -> Any:
    if isinstance(given, bool):
        raise ValueError(f"{_show(given)} is not a number; give a number")
    return given


def _actor_share(given: Any) -> int | str:
    if given in ("auto", "all") or (isinstance(given, int) and not isinstance(given, bool) and given >= 1):
        return given  # type: ignore[no-any-return]
    raise ValueError(f"{_show(given)} is neither a number of clients nor a known word; give auto, all or a whole number >= 1")


def _personal(given: Any) -> str | float | None:
    if isinstance(given, bool):
        return "synthetic" if given else None
    if given in (None, "synthetic", "held-out") or (isinstance(given, int | float) and 0 <= given <= 1):
        return given  # type: ignore[no-any-return]
    raise ValueError(f"{_show(given)} is not a way to choose a weight; give synthetic, held-out or a number in [0, 1]")


def _epsilon_text(epsilon: float | None) -> float | str | None:
    return "inf" if epsilon is not None and math.isinf(epsilon) else epsilon


Real = Annotated[float, BeforeValidator(_no_flag)]
Whole = Annotated[int, BeforeValidator(_no_flag)]
Epsilon = Annotated[Real, Field(gt=0), PlainSerializer(_epsilon_text, when_used="json")]
Alpha = Annotated[Real, Field(gt=0, allow_inf_nan=False)]
Clients = Annotated[Whole, Field(ge=1)]
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]
Delta = Annotated[Real, Field(gt=0, lt=1)]
Axis = Annotated[tuple[_Item, ...], BeforeValidator(_listed), AfterValidator(_distinct)]


# ---- models --------------------------------------------------------------------------------------------------------


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Evaluation(_Model):
    """How generators are judged.

    Attributes:
        per_class: synthetic rows per class that the probe is trained on.
        probe_c: inverse regularisation strength of the probe.
        per_client: also judge each client's own generator, on test rows as that client sees them.
        personal: also judge each client's own classifier interpolated with the shared one; how its weight is chosen: ``synthetic``
            (also ``true``), ``held-out``, or a number in [0, 1].
    """

    per_class: Annotated[Whole, Field(ge=1)] = 200
    probe_c: Annotated[Real, Field(gt=0, allow_inf_nan=False)] = 0.1
    per_client: bool = Field(default=False, strict=True)
    personal: Annotated[str | float | None, PlainValidator(_personal)] = None


class Privacy(_Model):
    """Where noise comes from.

    Attributes:
        noise: ``seeded``: it follows from the cell's seed, so that anyone can repeat a row, and nobody may release what it made;
            ``secret``: from the operating system's entropy, every cell its own, kept nowhere.
    """

    noise: Literal["seeded", "secret"] = "seeded"


class Resources(_Model):
    """Where cells run and what is kept; nothing here changes a result.

    Attributes:
        clients_per_actor: clients that one actor hosts; ``all``: one actor per cell, ``auto``: the scheduler's choice.
        cpus_per_actor: CPU share of an actor.
        gpus_per_actor: GPU share of an actor.
        save_generators: keep every cell's generator in the run folder, for ``fedsim synth``.
    """

    clients_per_actor: Annotated[Literal["auto", "all"] | int, PlainValidator(_actor_share)] = "auto"
    cpus_per_actor: Annotated[Real, Field(gt=0, allow_inf_nan=False)] = 1.0
    gpus_per_actor: Annotated[Real, Field(ge=0, allow_inf_nan=False)] = 0.0
    save_generators: bool = True


class AlgorithmEntry(_Model):
    """One entry of ``algorithms``: a name, or a mapping.

    Attributes:
        name: a registered name, an entry point or ``pkg.module:Class``.
        params: the parameters that differ from the algorithm's defaults.
        label: what tables and curves call it; default: the name.
    """

    name: str = Field(min_length=1)
    params: dict[str, Any] = {}
    label: str | None = Field(default=None, min_length=1)

    @property
    def display(self) -> str:
        """What it is called."""
        return self.label or self.name

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given


@dataclass(frozen=True)
class _Source:
    """Where the values of a grid came from, to name places in messages; no part of what makes two grids equal."""

    file: str = field(default="", compare=False)
    data: Any = field(default=None, compare=False)
    lines: Mapping[Loc, int] = field(default_factory=dict, compare=False)
    overrides: tuple[Loc, ...] = field(default=(), compare=False)

    def place(self, loc: Loc) -> str:
        """``file:line: key[i].key``; the parts of ``loc`` that validation added to what the user wrote are left out."""
        loc = self._written(loc)
        text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
        if any(loc[: len(key)] == key or (loc and loc not in self.lines and key[: len(loc)] == loc) for key in self.overrides):
            return f"--set {text}"
        if not self.file:
            return text or "grid"
        line = next((self.lines[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in self.lines), None)
        return ": ".join(part for part in (self.file if line is None else f"{self.file}:{line}", text) if part)

    def _written(self, loc: Loc) -> Loc:
        if not self.file:
            return loc
        kept: list[str | int] = []
        at: Any = self.data
        for part in loc:
            if isinstance(at, Mapping) and isinstance(part, str) and part != "[key]":
                at = at.get(part)
            elif isinstance(at, list | tuple) and isinstance(part, int) and part < len(at):
                at = at[part]
            else:
                continue
            kept.append(part)
        return tuple(kept)


class Grid(_Model):
    """A grid file: what to scan. The axes take one value or a list; a list anywhere else is just a list.

    Attributes:
        name: of the grid and its run folder; default: the file's stem.
        dataset: axis of data sets.
        encoder: what turns the images of data sets into embeddings; data sets that are embeddings already pass it by.
        partition: the scheme that divides rows among clients.
        algorithms: axis of algorithms.
        alpha: axis of Dirichlet concentrations, > 0.
        clients: axis of numbers of clients.
        epsilon: axis of privacy budgets, > 0; ``.inf`` is no privacy.
        seeds: axis of seeds.
        delta: of the (epsilon, delta) budgets.
        unit: what one budget protects: an example or a client.
        trust: who may see what: only the sum over clients (aggregate), or every message (silo).
        privacy: where noise comes from.
        scan: axes over algorithm parameters: values by parameter; an algorithm without the parameter is not multiplied.
        evaluation: how generators are judged.
        resources: where cells run.
    """

    name: str = Field(default="grid", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    dataset: Axis[DatasetSpec] = (DatasetSpec(name="digits"),)
    encoder: EncoderSpec | None = None
    partition: PartitionSpec = PartitionSpec()
    algorithms: Axis[AlgorithmEntry]
    alpha: Axis[Alpha] = (0.3,)
    clients: Axis[Clients] = (10,)
    epsilon: Axis[Epsilon] = (1.0,)
    seeds: Axis[Seed] = (0,)
    delta: Delta = 1e-4
    unit: Unit = "example"
    trust: Trust = "aggregate"
    privacy: Privacy = Privacy()
    scan: dict[str, Axis[Any]] = {}
    evaluation: Evaluation = Evaluation()
    resources: Resources = Resources()
    _source: _Source = PrivateAttr(default_factory=_Source)
    _refused: dict[int, PluginError] = PrivateAttr(default_factory=dict)

    @field_validator("dataset")
    @classmethod
    def _named_apart(cls, dataset: tuple[DatasetSpec, ...]) -> tuple[DatasetSpec, ...]:
        names = [spec.display for spec in dataset]
        if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
            raise ValueError(f"two data sets are called '{twice}'; give one another name: {{npz: PATH, name: NAME}}")
        return dataset

    @field_validator("encoder")
    @classmethod
    def _encoder_matters(cls, encoder: EncoderSpec | None, info: ValidationInfo) -> EncoderSpec | None:
        if encoder is not None and "dataset" in info.data and all(spec.kind == "npz" for spec in info.data["dataset"]):
            raise ValueError("no data set of the grid holds images; remove it")
        return encoder

    @field_validator("alpha")
    @classmethod
    def _alpha_matters(cls, alpha: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        partition = info.data.get("partition")
        if partition is not None and not partition.uses_alpha and len(alpha) > 1:
            raise ValueError(f"{len(alpha)} values, but scheme '{partition.scheme}' does not use alpha; give one value")
        return alpha

    def place(self, *loc: str | int) -> str:
        """The text that names a key in a message: ``grid.place("clients", 1)`` is ``g.yaml:5: clients[1]``."""
        return self._source.place(loc)

    @property
    def refused(self) -> Mapping[int, PluginError]:
        """Why entries of ``algorithms``, by their positions, are left out; they keep their places, so that messages name the right ones."""
        return self._refused

    def without(self, refused: Mapping[int, PluginError]) -> Grid:
        """The grid with further entries left out.

        Raises:
            PluginError: no entry would be left; the first one's error.
        """
        grid = self.model_copy()
        grid._refused = {**self._refused, **refused}
        if len(grid._refused) == len(grid.algorithms):
            raise grid._refused[0]
        return grid


class Cell(_Model):
    """One point of a grid; JSON-serialisable.

    Attributes:
        cell_id: 16 hex digits; equal for two cells exactly when nothing that can change the result differs.
        source: hash of the code that computes it, see :mod:`fedsim.source_hash`.
        label: what tables and curves call the algorithm with these parameters.
        algorithm: its name as the grid gives it.
        params: all its parameters, defaults included.
        dataset: where the data come from.
        dataset_hash: the data's fingerprint; None in what may be released.
        partition: the scheme.
        alpha: Dirichlet concentration (schemes other than the two Dirichlet ones ignore it).
        clients: how many.
        epsilon: budget, ``inf`` without privacy; None where epsilon has no meaning for the algorithm.
        delta: of the budget.
        unit: what the budget protects.
        trust: who may see what.
        noise: ``seeded``, or ``secret`` where a budget is kept by noise that no seed gives.
        seed: root of the cell's seed tree, and the partition's seed.
        evaluation: how the generator is judged.
    """

    cell_id: str
    source: str
    label: str
    algorithm: str
    params: dict[str, Any]
    dataset: DatasetSpec
    dataset_hash: str | None
    partition: PartitionSpec
    alpha: float
    clients: int
    epsilon: Annotated[float | None, PlainSerializer(_epsilon_text, when_used="json")]
    delta: float
    unit: Unit
    trust: Trust
    noise: Literal["seeded", "secret"]
    seed: int
    evaluation: Evaluation


# ---- reading -------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """SafeLoader that also reads ``1e-4`` as a number, as YAML 1.2 does."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


def load_grid(path: Path, overrides: Sequence[str] = (), *, keep_going: bool = False) -> Grid:
    """Read and check a grid file.

    Args:
        path: the YAML file; relative paths of data and encoder (those of overrides too) are taken from its folder.
        overrides: ``key=YAML`` texts that replace values of the file; ``evaluation.per_class=50`` goes into a mapping.
        keep_going: leave out the algorithms whose plug-in is refused.

    Raises:
        UserError: the first mistake, with its place.
    """
    data, lines = _parse(_read(path), str(path))
    if data is None:
        raise UserError(str(path), "the file is empty", "give at least `algorithms: [NAME]`")
    if not isinstance(data, dict):
        raise UserError(str(path), f"the top level is {_show(data)}, not a mapping", "write `key: value` lines")
    changed = tuple(_override(data, text) for text in overrides)
    source = _Source(str(path), data, lines, changed)
    try:
        grid = Grid.model_validate({"name": path.stem, **data})
    except ValidationError as error:
        raise _translated(error, Grid, source.place) from error
    return _placed(grid, source, path.absolute().parent, keep_going)


def _placed(grid: Grid, source: _Source, folder: Path, keep_going: bool = False) -> Grid:
    """The grid with its relative paths taken from ``folder``, its algorithms checked, and its places named by ``source``."""
    places: dict[str, Any] = {"dataset": tuple(spec.within(folder) for spec in grid.dataset)}
    grid = grid.model_copy(update=places | {"encoder": grid.encoder.within(folder) if grid.encoder else None})
    grid._source = source
    if keep_going:
        grid = grid.without(_refused_plug_ins(grid))
    variants(grid)
    return grid


def _refused_plug_ins(grid: Grid) -> dict[int, PluginError]:
    """Why classes cannot be used, by their positions."""
    refused: dict[int, PluginError] = {}
    for i, entry in enumerate(grid.algorithms):
        try:
            lookup(entry.name, grid.place("algorithms", i, "name"))
        except PluginError as error:
            refused[i] = error
    return refused


class _Options(_Source):
    """Places of a grid that was given as command line options."""

    def place(self, loc: Loc) -> str:
        """The option."""
        if not loc:
            return "fedsim run"
        if loc[0] == "algorithms":
            inner = [str(part) for part in loc[3:] if isinstance(part, str)]
            return f"--param {'.'.join(inner)}" if "params" in loc and inner else "--algorithm"
        name = {"seeds": "seed", "evaluation": "per-class"}.get(str(loc[0]), str(loc[0]))
        inner = [str(part) for part in loc[1:] if isinstance(part, str)] if name != "per-class" else []
        return ": ".join([f"--{name}", *([".".join(inner)] if inner else [])])


def grid_of_options(options: Mapping[str, Any], params: Sequence[str]) -> Grid:
    """A grid of one cell.

    Args:
        options: values by option; ``dataset``, ``encoder`` and ``partition`` are texts that may be YAML mappings.
        params: ``key=YAML`` texts, parameters of the algorithm.

    Raises:
        UserError: a value does not do; the message names the option.
    """
    given: dict[str, Any] = {}
    for text in params:
        _override(given, text, "--param")
    partition, _ = _parse(options["partition"], "--partition")
    parsed = {key: _parse(options[key], f"--{key}")[0] for key in ("dataset", "encoder") if options[key] is not None}
    same = {key: options[key] for key in ("alpha", "clients", "epsilon", "delta", "unit", "trust")}
    data: dict[str, Any] = {
        "name": "run",
        "algorithms": [{"name": options["algorithm"], "params": given}],
        "partition": partition if isinstance(partition, dict) else {"scheme": partition},
        "seeds": options["seed"],
        "evaluation": {"per_class": options["per-class"]},
        **{key: value if isinstance(value, dict) else str(value) for key, value in parsed.items()},
        **same,
    }
    source = _Options()
    try:
        grid = Grid.model_validate(data)
    except ValidationError as error:
        raise _translated(error, Grid, source.place) from error
    return _placed(grid, source, Path.cwd())


def parse_option(model: type[_Option], option: str, text: str, given: Mapping[str, Any]) -> _Option:
    """A command line's option as a grid would have it.

    Args:
        model: what it becomes.
        option: its name, for messages.
        text: a YAML scalar or mapping.
        given: keys that other options give; None is not given.

    Raises:
        UserError: it does not do.
    """
    value, _ = _parse(text, option)
    try:
        base = value if isinstance(value, dict) else model.model_validate(str(value)).model_dump(exclude_unset=True)
        return model.model_validate({**base, **{key: each for key, each in given.items() if each is not None}})
    except ValidationError as error:
        raise _translated(error, model, lambda loc: f"{option}: {'.'.join(map(str, loc))}" if loc else option) from error


def _read(path: Path) -> str:
    if path.is_dir():
        raise UserError(str(path), "is a folder", "give a grid file (YAML)")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(str(path), "there is no such file", "give the path of a grid file (YAML)") from error
    except (OSError, ValueError) as error:
        what = "is not a text file" if isinstance(error, UnicodeDecodeError) else f"cannot be read ({error})"
        raise UserError(str(path), what, "give a grid file (YAML, UTF-8)") from error


def _parse(text: str, where: str) -> tuple[Any, dict[Loc, int]]:
    """YAML text to plain data and the line of every key path."""
    lines: dict[Loc, int] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines
        _survey(node, (), lines, where, [0])
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        at = _at(where, error.problem_mark.line) if error.problem_mark else where
        raise UserError(at, f"is not valid YAML ({error.problem})", "correct the line") from error
    except RecursionError as error:
        raise UserError(where, "is nested too deeply", "give a grid file as benchmarks/quickstart.yaml") from error
    # PyYAML lets the errors of int(), datetime() and the like through
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError) as error:
        problem = " ".join(str(error).split())
        raise UserError(where, f"is not valid YAML ({problem})", "give a grid file as benchmarks/quickstart.yaml") from error


def _at(where: str, line: int) -> str:
    """A line, counted from 0, of a file; an override is one line anyway."""
    return where if where.startswith("--") else f"{where}:{line + 1}"


def _survey(node: yaml.Node, loc: Loc, lines: dict[Loc, int], where: str, seen: list[int]) -> None:
    """Note the line of every key path below ``node``; a key given twice is an error."""
    seen[0] += 1
    if seen[0] > _MOST_NODES:
        raise UserError(where, f"stands for more than {_MOST_NODES} values", "write a smaller grid, without nested aliases")
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[(*loc, i)] = item.start_mark.line + 1
            _survey(item, (*loc, i), lines, where, seen)
    elif isinstance(node, yaml.MappingNode):
        own: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in own:
                raise UserError(_at(where, key.start_mark.line), f"the key '{name}' is given twice", "remove one")
            own.add(name)
            lines[(*loc, name)] = key.start_mark.line + 1
            _survey(value, (*loc, name), lines, where, seen)


def _override(data: dict[str, Any], text: str, option: str = "--set") -> Loc:
    """Put one ``key=YAML`` into ``data``; return its key path."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        example = "alpha=[0.3]" if option == "--set" else "latent=16"
        raise UserError(f"{option} {text}", "is not of the form key=value", f"write for example {option} {example}")
    at = data
    for n, part in enumerate(parts[:-1], 1):
        inner = at.setdefault(part, {})
        if not isinstance(inner, dict):
            outer = ".".join(parts[:n])
            raise UserError(f"{option} {key.strip()}", f"'{outer}' is not a mapping in the grid file", f"set {outer} as a whole")
        at = inner
    at[parts[-1]], _ = _parse(value, f"{option} {key.strip()}")
    return tuple(parts)


# ---- messages ------------------------------------------------------------------------------------------------------


def _show(value: Any) -> str:
    """A value as the grid file would spell it, shortened."""
    if value is None:
        return "nothing"
    value = getattr(value, "display", value)
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple | set):
        return "a list"
    text = f"'{value}'" if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else f"{value}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _translated(error: ValidationError, model: type[BaseModel], place: Callable[[Loc], str]) -> UserError:
    """The first error as a ``UserError``; an unknown key goes first, for it explains the missing one."""
    found = error.errors(include_url=False)
    first: Any = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    where = place(first["loc"])
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        return UserError(where, f"unknown key '{key}'", nearest(key, _model_at(model, first["loc"][:-1]).model_fields))
    return UserError(where, *_complaint(first))


def _model_at(model: type[BaseModel], loc: Loc) -> type[BaseModel]:
    for part in loc:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def _complaint(error: Mapping[str, Any]) -> tuple[str, str]:
    """(what is wrong, what would be right) of one pydantic error."""
    kind, given, context = error["type"], _show(error["input"]), error.get("ctx", {})
    if kind == "missing":
        return "is missing", "give a value"
    if kind in ("value_error", "assertion_error"):
        what, _, right = str(context["error"]).partition("; ")
        return what, right
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        return f"unknown value {given}", nearest(str(error["input"]), known) if known else f"give {context['expected']}"
    if kind == "greater_than" and context["gt"] == 0:
        return f"{given} is not positive", "give a number > 0"
    bounds = {
        "greater_than": ("gt", ">"),
        "greater_than_equal": ("ge", ">="),
        "less_than": ("lt", "<"),
        "less_than_equal": ("le", "<="),
    }
    if kind in bounds:
        key, sign = bounds[kind]
        return f"{given} is not {sign} {context[key]}", f"give a number {sign} {context[key]}"
    if kind == "string_pattern_mismatch":
        return f"{given} does not do as a folder name", "give name: of letters, digits, '.', '_' and '-'"
    if kind in ("string_too_short", "too_short"):
        return "is empty", "give a value"
    for start, noun in _NOUNS.items():
        if kind.startswith(start):
            return "has no value" if error["input"] is None else f"{given} is not {noun}", f"give {noun}"
    return f"{given}: {error['msg']}", ""


_NOUNS = {
    "float_": "a number",
    "finite_number": "a finite number",
    "int_": "a whole number",
    "bool_": "true or false",
    "string_": "text",
    "invalid_key": "a text key",
    "path_": "a path",
    "model_": "a mapping",
    "dict_": "a mapping",
    "mapping_": "a mapping",
    "list_": "a list",
    "tuple_": "a list",
}


# ---- expansion -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """An algorithm with all parameters: one entry of ``algorithms`` at one point of ``scan``.

    Attributes:
        entry: the position in ``algorithms``.
        label: what tables and curves call it.
        name: the algorithm's name as the grid gives it.
        identity: which class it is, see :func:`fedsim.source_hash.place_of`.
        source: hash of its code and the harness's.
        params: all its parameters, defaults included.
        private: whether an epsilon has a meaning for it.
    """

    entry: int
    label: str
    name: str
    identity: str
    source: str
    params: dict[str, Any]
    private: bool


def expand(grid: Grid, data: Mapping[str, Embeddings]) -> tuple[Cell, ...]:
    """All cells, ordered by data set, alpha, clients, seed, then algorithm (with its scan) and epsilon.

    So cells that share a partition come together. An algorithm for which epsilon has no meaning makes one cell per
    partition, any other makes one per epsilon.

    Args:
        grid: from ``load_grid``.
        data: the embeddings of every ``grid.dataset`` by ``DatasetSpec.key``.

    Raises:
        UserError: the data do not allow so many clients, two data sets are the same, or an algorithm's entry is wrong.
    """
    _check_data(grid, data)
    return tuple(
        _cell(grid, variant, spec, data[spec.key].fingerprint, alpha, clients, epsilon, seed)
        for spec, alpha, clients, seed, variant in product(grid.dataset, grid.alpha, grid.clients, grid.seeds, variants(grid))
        for epsilon in (grid.epsilon if variant.private else (None,))
    )


def _check_data(grid: Grid, data: Mapping[str, Embeddings]) -> None:
    first: dict[str, int] = {}
    for i, spec in enumerate(grid.dataset):
        embeddings = data[spec.key]
        same = first.setdefault(embeddings.fingerprint, i)
        if same != i:
            raise UserError(grid.place("dataset", i), f"has the same content as dataset[{same}]", "remove one")
        for j, clients in enumerate(grid.clients):
            place = grid_place(grid, i, j)
            check_partition(embeddings.y_train, spec=grid.partition, clients=clients, columns=embeddings.columns, place=place)


def grid_place(grid: Grid, dataset: int, clients: int) -> Callable[[str], str]:
    """How an error of a partition names the grid's keys, for these positions on the axes."""

    def place(key: str) -> str:
        of = f" with data set '{grid.dataset[dataset].display}'" if len(grid.dataset) > 1 else ""
        return (grid.place("clients", clients) if key == "clients" else grid.place(*key.split("."))) + of

    return place


def _cell(
    grid: Grid,
    variant: Variant,
    spec: DatasetSpec,
    content: str,
    alpha: float,
    clients: int,
    epsilon: float | None,
    seed: int,
) -> Cell:
    scheme = grid.partition.model_dump(mode="json", exclude_none=True) | ({"alpha": alpha} if grid.partition.uses_alpha else {})
    # without an epsilon there is no budget to protect a unit with
    noise = grid.privacy.noise if variant.private else "seeded"
    budget = [_epsilon_text(epsilon), grid.delta, grid.unit, grid.trust, noise] if variant.private else None
    result_of = {
        "algorithm": variant.identity,
        "params": variant.params,
        "dataset": content,
        "partition": scheme,
        "clients": clients,
        "budget": budget,
        "seed": seed,
        "evaluation": grid.evaluation.model_dump(mode="json", exclude_none=True),
        "source": variant.source,
    }
    canonical = json.dumps(result_of, sort_keys=True, separators=(",", ":"))
    return Cell(
        cell_id=hashlib.sha256(canonical.encode()).hexdigest()[:16],
        source=variant.source,
        label=variant.label,
        algorithm=variant.name,
        params=variant.params,
        dataset=spec,
        dataset_hash=content,
        partition=grid.partition,
        alpha=alpha,
        clients=clients,
        epsilon=epsilon,
        delta=grid.delta,
        unit=grid.unit,
        trust=grid.trust,
        noise=noise,
        seed=seed,
        evaluation=grid.evaluation,
    )


def variants(grid: Grid) -> list[Variant]:
    """Every algorithm that is not refused at every point of the scan that concerns it, parameters validated by its own model.

    Raises:
        UserError: an algorithm is unknown, its parameters do not do, or two are the same.
    """
    classes = {
        i: lookup(entry.name, grid.place("algorithms", i, "name")) for i, entry in enumerate(grid.algorithms) if i not in grid.refused
    }
    known = {name for cls in classes.values() for name in cls.Params.model_fields}
    for parameter in grid.scan:
        if parameter not in known and not grid.refused:
            what = f"no algorithm of the grid has the parameter '{parameter}'"
            raise UserError(grid.place("scan", parameter), what, nearest(parameter, known))
    found: list[Variant] = []
    for i, cls in classes.items():
        entry = grid.algorithms[i]
        axes = [name for name in grid.scan if name in cls.Params.model_fields]
        if both := next((name for name in axes if name in entry.params), None):
            raise UserError(grid.place("scan", both), f"algorithms[{i}].params gives '{both}' too", "remove one of them")
        for point in product(*(range(len(grid.scan[name])) for name in axes)):
            chosen = dict(zip(axes, point, strict=True))
            variant = Variant(
                entry=i,
                label=" ".join([entry.display, *(f"{name}={_spell(grid.scan[name][j])}" for name, j in chosen.items())]),
                name=entry.name,
                identity=place_of(cls),
                source=source_hash(cls),
                params=_resolved(grid, i, cls.Params, chosen),
                private=cls.private,
            )
            _check_apart(grid, variant, found)
            found.append(variant)
    return found


def _spell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _resolved(grid: Grid, i: int, params: type[BaseModel], chosen: Mapping[str, int]) -> dict[str, Any]:
    def place(loc: Loc) -> str:
        if loc and loc[0] in chosen:
            name = str(loc[0])
            return grid.place("scan", name, chosen[name], *loc[1:])
        return grid.place("algorithms", i, "params", *loc)

    given = grid.algorithms[i].params | {name: grid.scan[name][j] for name, j in chosen.items()}
    try:
        return params.model_validate(given).model_dump(mode="json")
    except ValidationError as error:
        raise _translated(error, params, place) from error


def _check_apart(grid: Grid, new: Variant, others: Sequence[Variant]) -> None:
    for other in others:
        if (new.identity, new.params) == (other.identity, other.params):
            what = f"'{new.label}' is the same as '{other.label}' of algorithms[{other.entry}]"
            raise UserError(grid.place("algorithms", new.entry), what, "remove one")
        if new.label == other.label:
            what = f"'{new.label}' is also what algorithms[{other.entry}] is called"
            raise UserError(grid.place("algorithms", new.entry), what, "give one of them a label: of its own")
