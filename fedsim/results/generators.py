"""Saved generators: tensors as safetensors, the facts about them as JSON; nothing is ever unpickled.

A generator is made from the server's state and the released client codes, which are private already, so to sample from it costs nothing.
With secret noise nothing else in these files was computed from private data, nor is their name, so one may be released under its epsilon
(several of one data set: :mod:`fedsim.evidence.together`). With seeded noise anyone can draw the noise again and take it off: they are for
simulation only.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load, save

from fedsim.atomic import replaced
from fedsim.errors import UserError
from fedsim.evaluation.judge import synthesise
from fedsim.grid.models import Cell
from fedsim.json_lines import encode, reasons
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.messages import Task, Tensors
from fedsim.methods.products import Generator, is_personal, own
from fedsim.plugins.registry import check_installed, lookup
from fedsim.privacy.plan import RELEASABLE, Claim, PrivacyPlan
from fedsim.regular import read_regular, unread
from fedsim.results.contradictions import cross_check, large_deltas
from fedsim.results.folder import RunFolder
from fedsim.results.row import planned_mechanisms, told_fields
from fedsim.results.rows import Row
from fedsim.results.store import ResultStore
from fedsim.seeds import Purpose, Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.rounds import restored
from fedsim.training.state import check_alike, check_released, described
from fedsim.training.trial import Trial
from fedsim.words import setting

TENSORS = ".safetensors"
MOST = 10**6
"""Dimensions, classes or clients that a saved generator may have."""
DRAWN = 4
"""Times the memory of its rows that a draw takes at least, with random numbers and what is computed between."""
NAMED = 4
"""Generators that an error names: a line that is not shortened has room for them."""


class GeneratorFacts(BaseModel):
    """What a saved generator's JSON file says: its cell, the public facts, the plan, what was spent, and what its tensors are.

    ``tensors`` tells dtype and shape by name, ``sha256`` is that of the ``.safetensors`` file; the JSON file's own is in the cell's row.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    cell: Cell
    task: Task
    plan: PrivacyPlan | None
    class_names: tuple[str, ...]
    status: Literal["ok", "overspent", "unaccounted", "refuted"]
    epsilon_spent: float | None
    accountant: str | None
    versions: dict[str, str]
    tensors: dict[str, str]
    sha256: str

    @model_validator(mode="after")
    def _one_story(self) -> GeneratorFacts:
        """What is said twice is said alike, and every number is in its range: the files may be anybody's."""
        cell, task, plan = self.cell, self.task, self.plan
        for name, value in (("dim", task.dim), ("classes", task.classes), ("clients", task.clients)):
            if not 1 <= value <= MOST:
                raise ValueError(f"task.{name} is {value}, not in 1 .. {MOST}")
        if not 0 <= cell.seed < 2**63:
            raise ValueError(f"cell.seed is {cell.seed}, not in 0 .. 2^63 - 1")
        if (cell.clients, cell.unit, cell.trust) != (task.clients, task.unit, task.trust):
            raise ValueError("cell and task differ in clients, unit or trust")
        if (plan is None) != (cell.epsilon is None):
            raise ValueError("cell and plan differ in epsilon")
        if plan is None:
            return self
        if (plan.epsilon_target, plan.delta, plan.unit, plan.trust) != (cell.epsilon, cell.delta, cell.unit, cell.trust):
            raise ValueError("cell and plan differ in epsilon, delta, unit or trust")
        if not (plan.epsilon_target > 0 and 0 < plan.delta < 1 and 0 <= plan.sigma < math.inf):
            raise ValueError("the plan's epsilon, delta or sigma is out of range")
        spent = self.epsilon_spent
        if self.status == "ok" and not (spent is not None and 0 <= spent <= plan.epsilon_target * (1 + 1e-6)):
            raise ValueError(f"epsilon_spent is {spent} of {plan.epsilon_target}, which is not what status 'ok' says")
        return self

    @property
    def held_back(self) -> str:
        """Why nothing that is made from it may leave the simulation; "" where everyone may have it, under its epsilon."""
        plan = self.plan
        if plan is None or math.isinf(plan.epsilon_target):
            return "it carries no noise"
        if self.cell.noise == "seeded":
            return "the seed of its noise is known, and who knows it can take the noise off"
        if self.status != "ok" or plan.claim not in RELEASABLE:
            return f"its status is {self.status}, its claim {plan.claim}"
        return ""


def releasable(cell: Cell) -> Cell:
    """The cell as its generator's files tell it: with secret noise without any exact function of private data.

    A hash of the rows, which a cell's id depends on too, tells a data set from its neighbour. The id is then one of the public facts alone.
    """
    if cell.noise == "seeded":
        return cell
    public = cell.model_dump(mode="json", exclude={"cell_id", "dataset_hash"})
    name = hashlib.sha256(json.dumps(public, sort_keys=True).encode()).hexdigest()[:16]
    return cell.model_copy(update={"cell_id": name, "dataset_hash": None})


def save_generator(
    run: RunFolder, trial: Trial, class_names: tuple[str, ...], state: Tensors, spent: Mapping[str, Any], versions: Mapping[str, str]
) -> str:
    """Write ``generators/<cell_id>.safetensors`` and ``.json`` into a run folder, named by the id of :func:`releasable`.

    Args:
        run: the run folder.
        trial: the cell.
        class_names: what the classes are called; may be empty.
        state: what the generator is made from (``Trained.state``).
        spent: status, epsilon spent and accountant.
        versions: of the packages that computed.

    Returns:
        SHA-256 of the JSON file, for the cell's row.
    """
    cell = releasable(trial.cell)
    content = save({name: value.contiguous() for name, value in state.items()})
    facts = GeneratorFacts(
        cell=cell,
        task=trial.task,
        plan=trial.plan,
        class_names=class_names,
        versions=dict(versions),
        tensors=described(state),
        sha256=hashlib.sha256(content).hexdigest(),
        **spent,
    )
    path = run.generator(cell.cell_id)
    with replaced(path.with_suffix(TENSORS)) as part:
        part.write_bytes(content)
    return _write_facts(path, facts)


def hold_back(run: RunFolder, cell: Cell) -> str | None:
    """Note that an audit has refuted the claim of a saved generator.

    Returns:
        SHA-256 of the JSON file, for the cell's row; None where no generator is saved.

    Raises:
        UserError: its facts cannot be read.
    """
    path = run.generator(releasable(cell).cell_id)
    return _write_facts(path, _facts(path)[0].model_copy(update={"status": "refuted"})) if path.exists() else None


def tell_claim(run: RunFolder, cell: Cell, claim: Claim, known: str | None) -> str | None:
    """Note what the claim of a saved generator is worth now; a file whose hash is not ``known``, its row's, is nobody's to vouch for again.

    Returns:
        SHA-256 of the JSON file, or ``known`` where there is no such file.

    Raises:
        UserError: its facts cannot be read.
    """
    path = run.generator(releasable(cell).cell_id)
    if not path.exists():
        return known
    facts, digest = _facts(path)
    if (plan := facts.plan) is None:
        return known
    told = {each: facts.model_copy(update={"plan": replace(plan, claim=each)}) for each in get_args(Claim)}
    # after an end between the two, these facts are told already and their row is not
    ahead = digest == _digest(facts) and known in set(map(_digest, told.values()))
    return _write_facts(path, told[claim]) if digest == known or ahead else known


def _write_facts(path: Path, facts: GeneratorFacts) -> str:
    """Write the JSON file; its SHA-256."""
    with replaced(path) as part:
        part.write_bytes(_content(facts))
    return _digest(facts)


def _content(facts: GeneratorFacts) -> bytes:
    return (facts.model_dump_json(indent=1) + "\n").encode()


def _digest(facts: GeneratorFacts) -> str:
    """SHA-256 of the JSON file that is written of the facts."""
    return hashlib.sha256(_content(facts)).hexdigest()


@dataclass(frozen=True, eq=False)
class SavedGenerator:
    """A generator of an earlier run.

    Attributes:
        facts: its cell, plan and what was spent.
        synthesis: how it synthesises, as the algorithm's parameter says or ``client:K``; None where the algorithm has one way only.
        generator: the generator itself.
        digest: SHA-256 of the JSON file.
        row: the row of the run that has that hash; without one, all that the facts say is by the file's own word.
        notes: what the facts were not compared with.
    """

    facts: GeneratorFacts
    synthesis: str | None
    generator: Generator
    digest: str
    row: Row | None
    notes: tuple[str, ...]

    @property
    def vouched(self) -> bool:
        """Whether a row of the run says the same."""
        return self.row is not None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of its budget has to know."""
        return (*self.notes, *(large_deltas([self.row]) if self.row else ()))

    def sample(self, labels: ArrayLike, seed: int | None = None) -> NDArray[np.float32]:
        """Synthetic embeddings ``[n, d]`` for labels ``[n]`` in 0 .. C-1.

        Args:
            labels: one per row.
            seed: of the draw; default: the cell's.

        Raises:
            UserError: a label is not in 0 .. C-1.
        """
        y = np.asarray(labels)
        classes = self.facts.task.classes
        if y.ndim != 1 or y.dtype.kind not in "iu" or (len(y) and not 0 <= y.min() <= y.max() < classes):
            raise UserError("labels", "are not a row of whole numbers of known classes", f"give labels 0 .. {classes - 1}")
        x = self.generator.sample(torch.from_numpy(y.astype(np.int64)), self._seeds(seed).torch(Purpose.SYNTHESIS))
        return x.numpy().astype(np.float32, copy=False)

    def synthesise(self, per_class: int, seed: int | None = None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """``per_class`` synthetic embeddings of every class, and their labels; by default those that the cell was scored on.

        Raises:
            UserError: they are more than this machine's memory holds.
        """
        task = self.facts.task
        needed, memory = 4 * task.classes * per_class * task.dim, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if DRAWN * needed > memory:
            rows = f"{per_class} rows of {task.classes} classes and {task.dim} dimensions"
            what = f"{rows} are {needed / 2**30:.0f} GiB, and to draw them takes {DRAWN} times that or more"
            raise UserError("--per-class", what, f"give fewer; this machine has {memory / 2**30:.0f} GiB")
        return synthesise(self.generator, self.facts.task.classes, per_class, self._seeds(seed))

    def manifest(self, per_class: int, seed: int | None = None) -> dict[str, Any]:
        """What a file of :meth:`synthesise` has to carry: what the rows are and what privacy was paid for them."""
        cell, plan = self.facts.cell, self.facts.plan
        return {
            "synthetic": True,
            "cell_id": cell.cell_id,
            "algorithm": cell.algorithm,
            "label": cell.label,
            "dataset": cell.dataset.display,
            "dataset_hash": cell.dataset_hash,
            "synthesis": self.synthesis,
            "per_class": per_class,
            "seed": self._seeds(seed).root,
            "epsilon": encode(self.facts.epsilon_spent),
            "epsilon_target": None if plan is None else encode(plan.epsilon_target),
            "delta": None if plan is None else plan.delta,
            "unit": None if plan is None else cell.unit_name,
            "trust": None if plan is None else plan.trust,
            "scope": None if plan is None else plan.scope,
            "claim": "none" if plan is None else plan.claim,
            "accountant": self.facts.accountant,
            "status": self.facts.status,
            "class_names": list(self.facts.class_names),
            "versions": self.facts.versions,
            "noise": cell.noise,
            "facts_sha256": self.digest,
            "tensors_sha256": self.facts.sha256,
            "vouched": "by a row of its run" if self.vouched else "by nothing: no results were with it",
            "release": "simulation only" if self.facts.held_back else "under its epsilon",
            "held_back": self.facts.held_back,
        }

    def _seeds(self, seed: int | None) -> Seeds:
        root = self.facts.cell.seed if seed is None else seed
        if not 0 <= root < 2**63:
            raise UserError("--seed", f"{root} is no seed", "give a whole number in 0 .. 2^63 - 1")
        return Seeds(root)


def load_generator(run: Path | str, cell: str | None = None, synthesis: str | None = None, *, trust_plugin: bool = False) -> SavedGenerator:
    """Load a generator that a bench saved, if it is to the letter what was saved.

    Names, shapes and dtypes of the tensors have to be those that the facts tell and that the algorithm's model has, their hash the facts',
    and the facts' hash that of a row that says the same, where the run's rows are there. Budget and plan must be what the algorithm makes
    of its parameters (:func:`fedsim.results.contradictions.cross_check`). Only code of registered algorithms and installed packages runs.

    Args:
        run: the run folder.
        cell: the cell's id or its beginning; may be left out where there is one generator.
        synthesis: one of the algorithm's ``syntheses``, or ``client:K``, instead of the cell's own way.
        trust_plugin: also run the code of an algorithm that the facts name as a file or a module that is not installed.

    Raises:
        UserError: there is no such generator, it is not what was saved, its algorithm is a plug-in, or does not synthesise like that.
    """
    path = _find(Path(run), cell)
    facts, digest = _facts(path)
    row = _vouching(RunFolder(Path(run)), path, digest)
    state = _tensors(path.with_suffix(TENSORS), facts)
    if not trust_plugin:
        check_installed(facts.cell.algorithm, str(path))
    kind, colon, client = (synthesis or "").partition(":")
    ways, where = lookup(facts.cell.algorithm).syntheses, f"--synthesis {synthesis}"
    params = {**facts.cell.params, "synthesis": kind} if kind in ways else facts.cell.params
    if synthesis is not None and kind != "client" and not ways:
        raise UserError(where, f"{facts.cell.label} has one way to synthesise", "leave it out")
    algorithm, generator = _made(path, facts, params, state)
    saved = SavedGenerator(facts, facts.cell.params.get("synthesis"), generator, digest, row, _cross_checked(path, facts, row))
    if synthesis is None:
        return saved
    if kind in ways and not colon:
        return replace(saved, synthesis=kind)
    if kind != "client" or not client.isdigit():
        raise UserError(where, "is not known", f"give {''.join(f'{way}, ' for way in ways)}or client: and a number such as client:3")
    return replace(saved, synthesis=synthesis, generator=_of_client(algorithm, generator, int(client), facts, where))


_AGAIN = "run the cell again in a new folder"


def read_generator(path: Path, digest: str | None) -> tuple[GeneratorFacts, Tensors]:
    """What :func:`save_generator` wrote: the facts, and what the generator is made from.

    Args:
        path: the facts.
        digest: their hash by the cell's row; None where the row has none.

    Raises:
        UserError: it cannot be read, or is not what was saved.
    """
    facts, found = _facts(path)
    if digest not in (None, found):
        raise UserError(str(path), "the row of its cell has another hash: it was changed, or is of another run", _AGAIN)
    return facts, _tensors(path.with_suffix(TENSORS), facts)


def _facts(path: Path) -> tuple[GeneratorFacts, str]:
    """What the JSON file says, and its hash."""
    try:
        content = read_regular(path)
        facts = GeneratorFacts.model_validate_json(content)
    except (OSError, ValidationError) as error:
        lacks = {item["loc"] for item in error.errors() if item["type"] == "missing"} if isinstance(error, ValidationError) else set()
        if lacks == {("tensors",), ("sha256",)}:
            what = "was saved by an older fedsim, without the hash that ties its tensors to what it says of them"
        else:
            what = f"cannot be read ({'; '.join(reasons(error)) if isinstance(error, ValidationError) else unread(error)})"
        raise UserError(str(path), what, _AGAIN) from error
    if facts.cell.cell_id != path.stem:
        raise UserError(str(path), f"holds the generator of cell {facts.cell.cell_id}", "give every file its own name back")
    return facts, hashlib.sha256(content).hexdigest()


def _vouching(run: RunFolder, path: Path, digest: str) -> Row | None:
    """The row that has the hash of the facts; there may be no rows at all, as beside released files."""
    if not run.results.exists():
        return None
    if rows := [row for row in ResultStore(run.path).rows() if row.generator == digest]:
        return rows[0]
    raise UserError(str(path), f"no row of {run.results} has its hash: it was changed, or is of another run", _AGAIN)


def _cross_checked(path: Path, facts: GeneratorFacts, row: Row | None) -> tuple[str, ...]:
    """What the facts were not compared with.

    Raises:
        UserError: they differ from their row, or contradict themselves or the algorithm's plan.
    """
    told = _as_row(facts)
    if row is not None and (differing := list(_differing(told, row))):
        raise UserError(str(path), f"differs from the row of its cell: {'; '.join(differing)}", _AGAIN)
    checked = cross_check(told, dims=(facts.task.dim,), trust_plugin=True)
    if checked.contradictions:
        raise UserError(str(path), f"contradicts itself: {'; '.join(checked.contradictions)}", _AGAIN)
    return checked.notes


def _as_row(facts: GeneratorFacts) -> Row:
    """The row that has to vouch for the facts, without scores."""
    fields = told_fields(facts.cell, facts.plan, facts.task.classes)
    fields |= {"status": facts.status, "epsilon_spent": facts.epsilon_spent, "accountant": facts.accountant}
    plan = None if facts.status == "unaccounted" else facts.plan
    return Row.model_construct(**fields, mechanisms=None if plan is None else planned_mechanisms(plan))


_NEWER = ("dataset_hash", "source", "noise", "relation", "sensitivity", "mechanisms", "chance", "scheme")
"""What an older row lacks, or facts that hold nothing of private data."""


def _differing(told: Row, row: Row) -> Iterator[str]:
    """Where a row says otherwise than the facts, which are ``told`` as one."""
    for name in sorted(told.model_fields_set - {"cell_id", "label"}):
        here, there = getattr(told, name), getattr(row, name)
        if not _same(name, here, there, told.algorithm) and not (name in _NEWER and None in (here, there)):
            yield name if name in ("params", "mechanisms") else f"{name} {here} and not {there}"


def _same(name: str, here: Any, there: Any, algorithm: str) -> bool:
    if name == "mechanisms" and here and there and len(here) == len(there):
        # a ledger's multiplier was divided by the sensitivity that it is multiplied by
        return all(
            math.isclose(a.noise_multiplier, b.noise_multiplier, rel_tol=1e-6)
            and a == b.model_copy(update={"noise_multiplier": a.noise_multiplier})
            for a, b in zip(here, there, strict=True)
        )
    if name == "params" and here != there:  # infinity has another word there
        params = lookup(algorithm).Params
        try:
            return params.model_validate(here) == params.model_validate(there)
        except ValidationError:
            return False
    return bool(here == there)


def _tensors(path: Path, facts: GeneratorFacts) -> Tensors:
    """The tensors, if they are those of the facts."""
    try:
        content = read_regular(path)
        state: Tensors = load(content)
        check_alike(described(state), facts.tensors)
        if hashlib.sha256(content).hexdigest() != facts.sha256:
            raise ValueError("its SHA-256 is not the one in the JSON file beside it")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(str(path), f"is not what was saved ({unread(error)})", _AGAIN) from error
    return state


def _made(path: Path, facts: GeneratorFacts, params: Mapping[str, Any], state: Tensors) -> tuple[Algorithm, Generator]:
    """The algorithm and its generator, which is drawn from once: files that agree with each other can still be nonsense."""
    task = facts.task
    try:
        algorithm = build_algorithm(facts.cell.algorithm, dict(params), task)
        with torch.device("meta"):  # without memory: the sizes may be anybody's
            model = algorithm.build(0)
        check_released(model, state, task.clients, codes=algorithm.releases_codes())
        generator, _ = restored(algorithm, state, facts.plan, Seeds(facts.cell.seed))
        drawn = generator.sample(torch.arange(task.classes), Seeds(0).torch(Purpose.SYNTHESIS))
        if drawn.shape != (task.classes, task.dim) or not drawn.isfinite().all():
            raise ValueError(f"it draws {described({'x': drawn})['x']}, not finite rows [{task.classes}, {task.dim}]")
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever an algorithm makes of values that it did not make
        why = "; ".join(reasons(error)) if isinstance(error, ValidationError) else unread(error)
        raise UserError(str(path), f"is no generator of {facts.cell.label} ({type(error).__name__}: {why})", _AGAIN) from error
    return algorithm, generator


def _of_client(algorithm: Algorithm, generator: Generator, client: int, facts: GeneratorFacts, where: str) -> Generator:
    if client >= facts.task.clients:
        raise UserError(where, f"there are {facts.task.clients} clients", f"give client:0 .. client:{facts.task.clients - 1}")
    if not is_personal(generator):
        raise UserError(where, f"{facts.cell.label} has one generator for all clients", "leave it out")
    if not algorithm.releases_codes():
        what = "under noised: shared the client codes carry no noise, so they never left their clients"
        raise UserError(where, what, f"give {' or '.join(algorithm.syntheses)}, or train with noised: all")
    return own(generator, client)


def _find(run: Path, cell: str | None) -> Path:
    folder = RunFolder(run).generators
    found = sorted(folder.glob(f"{cell or ''}*.json")) if not cell or cell.isalnum() else []
    if not found and cell:
        found = _of_row(run, cell)
    if len(found) == 1:
        return found[0]
    ids = _listed(found or sorted(folder.glob("*.json")))
    if not ids:
        raise UserError(str(run), "there are no generators here", "give the folder of a run whose generative cells are finished")
    if cell is None or found:
        raise UserError(str(run), f"there are several generators ({ids})", "name one with --cell")
    raise UserError(f"--cell {cell}", f"there is no generator of this cell in {run}", f"known: {ids}")


def _of_row(run: Path, cell: str) -> list[Path]:
    """The generators of the rows whose cell's id begins so: with secret noise a file is called otherwise (:func:`releasable`)."""
    folder = RunFolder(run)
    rows = ResultStore(run).rows() if folder.results.exists() else []
    hashes = {row.generator for row in rows if row.generator and row.cell_id.startswith(cell)}
    return [path for path in sorted(folder.generators.glob("*.json")) if _hash(path) in hashes]


def _hash(path: Path) -> str | None:
    """SHA-256 of a file, whatever it holds; None where it cannot be read."""
    try:
        return hashlib.sha256(read_regular(path)).hexdigest()
    except OSError:
        return None


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(map(_told, paths[:NAMED])) + (f" and {len(paths) - NAMED} more" if len(paths) > NAMED else "")


def _told(path: Path) -> str:
    """A generator's id and setting; its id alone where its facts cannot be read."""
    try:
        cell = _facts(path)[0].cell
    except UserError:
        return path.stem
    return f"{path.stem} ({setting(cell.label, epsilon=cell.epsilon, seed=cell.seed)})"
