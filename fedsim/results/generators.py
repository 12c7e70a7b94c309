"""Saved generators: made again from what a training left; a released one is a package of tensors and the facts about them.

A generator is made from the server's state and the released client codes, which are private already, so to sample from it costs nothing.
With secret noise nothing else in a package was computed from private data, nor is its name, so one may be released under its epsilon
(several of one data set: :mod:`fedsim.evidence.prove`). With seeded noise anyone can draw the noise again and take it off: they are for
simulation only. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from safetensors.torch import save

from fedsim.data.arrays import check_target, write_npz, write_sidecar
from fedsim.data.parquet import read_parquet_manifest, write_parquet
from fedsim.errors import UserError
from fedsim.evaluation.judge import synthesise
from fedsim.files import replaced, unread
from fedsim.grid.models import Cell
from fedsim.json_lines import dump, encode, reasons
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.messages import Task, Tensors
from fedsim.methods.products import Generator, is_classifier, is_personal, own
from fedsim.plugins.registry import check_installed, lookup
from fedsim.privacy.plan import RELEASABLE, PrivacyPlan
from fedsim.results.contradictions import cross_check, large_deltas
from fedsim.results.folder import RunFolder
from fedsim.results.grid_rows import entries, every_entry
from fedsim.results.join import Lines, planned, planned_mechanisms, tuning_of
from fedsim.results.rows import Row
from fedsim.results.trained import read_state
from fedsim.seeds import Purpose, Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.rounds import restored
from fedsim.training.state import check_alike, check_released, described
from fedsim.words import setting

TENSORS = ".safetensors"
MOST_SIZE = 10**6
"""Dimensions, classes or clients that a saved generator may have."""
DRAWN = 4
"""Times the memory of its rows that a draw takes at least, with random numbers and what is computed between."""
MOST_NAMED = 4
"""Generators that an error names: a line that is not shortened has room for them."""


class GeneratorFacts(BaseModel):
    """What is known of a saved generator, and what a package's JSON file says of it.

    ``tensors`` are dtype and shape by name, ``sha256`` is that of the ``.safetensors`` file.
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
        cell, task, plan, spent = self.cell, self.task, self.plan, self.epsilon_spent
        for name, value in (("dim", task.dim), ("classes", task.classes), ("clients", task.clients)):
            if not 1 <= value <= MOST_SIZE:
                raise ValueError(f"task.{name} is {value}, not in 1 .. {MOST_SIZE}")
        if not 0 <= cell.seed < 2**63:
            raise ValueError(f"cell.seed is {cell.seed}, not in 0 .. 2^63 - 1")
        if (cell.clients, cell.unit, cell.trust) != (task.clients, task.unit, task.trust):
            raise ValueError("cell and task differ in clients, unit or trust")
        budget = None if plan is None else (plan.epsilon_target, plan.delta, plan.unit, plan.trust)
        if budget != (None if cell.epsilon is None else (cell.epsilon, cell.delta, cell.unit, cell.trust)):
            raise ValueError("cell and plan differ in epsilon, delta, unit or trust")
        if plan is None:
            return self
        if not (plan.epsilon_target > 0 and 0 < plan.delta < 1 and 0 <= plan.sigma < math.inf):
            raise ValueError("the plan's epsilon, delta or sigma is out of range")
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
            return "the seed of its noise is known, and with it anyone can take the noise off"
        if self.status != "ok" or plan.claim not in RELEASABLE:
            return f"its status is {self.status}, its claim {plan.claim}"
        return ""


def releasable(cell: Cell) -> Cell:
    """The cell as what leaves a run says it: with secret noise without any exact function of private data.

    A hash of the rows, which the ids of a cell and its training depend on too, tells a data set from its neighbour. The id is then one of
    the public facts alone.
    """
    if cell.noise == "seeded":
        return cell
    public = cell.model_dump(mode="json", exclude={"cell_id", "training_id", "dataset_hash"})
    name = hashlib.sha256(json.dumps(public, sort_keys=True).encode()).hexdigest()[:16]
    return cell.model_copy(update={"cell_id": name, "training_id": "", "dataset_hash": None})


def release(run: Path | str, cell: str | None, out: Path, *, trust_plugin: bool = False) -> tuple[Path, GeneratorFacts]:
    """Write the generator of a cell as a package that may leave the simulation: ``<id>.safetensors`` and ``<id>.json``.

    Args:
        run: the run folder.
        cell: the cell's id or its beginning; may be left out where there is one generator.
        out: the folder of the two files.
        trust_plugin: also run the code of an algorithm that the run names as a file or a module that is not installed.

    Returns:
        The JSON file, and what it says.

    Raises:
        UserError: there is no such generator, it cannot be loaded, or it may not leave the simulation under its epsilon.
    """
    facts, state, row = _of_run(RunFolder(Path(run)), cell)
    where = f"{run}, cell {facts.cell.cell_id}"
    if not trust_plugin:
        check_installed(facts.cell.algorithm, where)
    _made(where, facts, facts.cell.params, state)
    _cross_checked(where, facts, row)
    if facts.held_back:
        raise UserError(f"cell {facts.cell.cell_id}", f"may not be released: {facts.held_back}", RELEASE_HINT)
    public = releasable(facts.cell)
    path = out / f"{public.cell_id}.json"
    content = save({name: value.contiguous() for name, value in state.items()})
    facts = facts.model_copy(update={"cell": public, "sha256": hashlib.sha256(content).hexdigest()})
    out.mkdir(parents=True, exist_ok=True)
    for file, written in ((path.with_suffix(TENSORS), content), (path, (facts.model_dump_json(indent=1) + "\n").encode())):
        with replaced(file) as part:
            part.write_bytes(written)
    return path, facts


@dataclass(frozen=True, eq=False)
class SavedGenerator:
    """A generator of an earlier run.

    Attributes:
        facts: its cell, plan and what was spent.
        synthesis: how it synthesises, as the algorithm's parameter says or ``client:K``; None where the algorithm has one way only.
        generator: the generator itself.
        row: the row of the run that they are of; without one, all that the facts say is by the file's own word.
        notes: what the facts were not compared with.
    """

    facts: GeneratorFacts
    synthesis: str | None
    generator: Generator
    row: Row | None
    notes: tuple[str, ...]

    @property
    def vouched(self) -> bool:
        """Whether the results of a run say the same."""
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
            raise UserError("per_class", what, f"give fewer; this machine has {memory / 2**30:.0f} GiB")
        return synthesise(self.generator, self.facts.task.classes, per_class, self._seeds(seed))

    def manifest(self, per_class: int, seed: int | None = None) -> dict[str, Any]:
        """What a file of :meth:`synthesise` has to carry: what the rows are and what privacy was paid for them."""
        cell, plan = releasable(self.facts.cell), self.facts.plan
        return {
            "synthetic": True,
            "cell_id": cell.cell_id,
            "algorithm": cell.algorithm,
            "label": cell.label,
            "dataset": cell.dataset.display,
            "dataset_hash": cell.dataset_hash,
            "public": cell.public,
            "public_hash": cell.public_hash,
            "public_licence": cell.public_licence,
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
            "tensors_sha256": self.facts.sha256,
            "vouched": "by the results of its run" if self.vouched else "by nothing: no results were with it",
            "release": "simulation only" if self.facts.held_back else "under its epsilon",
            "held_back": self.facts.held_back,
        }

    def save(self, out: Path | str, per_class: int = 200, seed: int | None = None) -> dict[str, Any]:
        """Write the rows of :meth:`synthesise` into an .npz or .parquet file, with their manifest, also as JSON beside it.

        Returns:
            The manifest.

        Raises:
            UserError: the file cannot be written, or pyarrow is missing.
        """
        out = Path(out)
        check_target(out, *((".parquet", read_parquet_manifest) if out.suffix == ".parquet" else ()))
        x, y = self.synthesise(per_class, seed)
        manifest = self.manifest(per_class, seed)
        names = manifest["class_names"]
        if out.suffix == ".parquet":
            write_parquet(out, x, y, names or list(map(str, range(self.facts.task.classes))), manifest)
        else:
            write_npz(out, (len(x), x.shape[1]), "float32", [x], {"y": y, **({"class_names": np.array(names)} if names else {})}, manifest)
        write_sidecar(out, manifest)
        return manifest

    def _seeds(self, seed: int | None) -> Seeds:
        root = self.facts.cell.seed if seed is None else seed
        if not 0 <= root < 2**63:
            raise UserError("seed", f"{root} is no seed", "give a whole number in 0 .. 2^63 - 1")
        return Seeds(root)


def load_generator(run: Path | str, cell: str | None = None, synthesis: str | None = None, *, trust_plugin: bool = False) -> SavedGenerator:
    """Load a generator that a bench kept, or one that was released, if it is to the letter what was saved.

    Names, shapes and dtypes of the tensors have to be those that the algorithm's model has, their hash the one that was noted. Budget and
    plan must be what the algorithm makes of its parameters (:func:`fedsim.results.contradictions.cross_check`). Only code of registered
    algorithms and installed packages runs.

    Args:
        run: the run folder, or the folder of a released package.
        cell: the cell's id or its beginning; may be left out where there is one generator.
        synthesis: one of the algorithm's ``syntheses``, or ``client:K``, instead of the cell's own way.
        trust_plugin: also run the code of an algorithm that the facts name as a file or a module that is not installed.

    Raises:
        UserError: there is no such generator, it is not what was saved, its algorithm is a plug-in, or does not synthesise like that.
    """
    folder = RunFolder(Path(run))
    row: Row | None = None
    if folder.lines("trainings").exists():
        facts, state, row = _of_run(folder, cell)
    else:
        facts, state = _of_package(folder.path, cell)
    where = f"{run}, cell {facts.cell.cell_id}"
    if not trust_plugin:
        check_installed(facts.cell.algorithm, where)
    kind, colon, client = (synthesis or "").partition(":")
    ways, option = lookup(facts.cell.algorithm).syntheses, f"synthesis {synthesis}"
    params = {**facts.cell.params, "synthesis": kind} if kind in ways else facts.cell.params
    if synthesis is not None and kind != "client" and not ways:
        raise UserError(option, f"{facts.cell.label} has one way to synthesise", "leave it out")
    algorithm, generator = _made(where, facts, params, state)
    notes = _cross_checked(where, facts, row or _as_row(facts))
    saved = SavedGenerator(facts, facts.cell.params.get("synthesis"), generator, row, notes)
    if synthesis is None:
        return saved
    if kind in ways and not colon:
        return replace(saved, synthesis=kind)
    if kind != "client" or not client.isdigit():
        raise UserError(option, "is not known", f"give {''.join(f'{way}, ' for way in ways)}or client: and a number such as client:3")
    return replace(saved, synthesis=synthesis, generator=_of_client(algorithm, generator, int(client), facts, option))


_AGAIN = "run the cell again in a new folder"
RELEASE_HINT = "a generator may leave under privacy: {noise: secret}, a finite epsilon, and a claim that is proved or checked"


def _of_run(folder: RunFolder, cell: str | None) -> tuple[GeneratorFacts, Tensors, Row]:
    """The facts of a run's generator, from its result lines, what it is made from, and the row of its cell."""
    lines = Lines.read(folder.path)
    held = {e.cell_id: e for e in [*every_entry(lines), *entries(folder.path, lines)] if _is_kept(lines.trainings.get(e.training_id))}
    entry = held[_chosen(folder.path, cell, {id_: _words(lines.trainings[e.training_id]["cell"]) for id_, e in held.items()})]
    line, where = lines.trainings[entry.training_id], f"{folder.lines('trainings')}, training {entry.training_id}"
    state = read_state(folder.state(entry.training_id), line["state"], _AGAIN)
    row, ledger = lines.trained_row(entry), line["ledger"] or {}
    plan = line["plan"] and {**line["plan"], "claim": row.claim}
    facts = {name: line[name] for name in ("task", "class_names", "versions")} | {
        "cell": {**line["cell"], "cell_id": entry.cell_id, "label": entry.label},
        "plan": plan,
        "status": lines.standing(entry)[0],  # the training's: it may be its judging that failed
        "epsilon_spent": ledger.get("epsilon_spent"),
        "accountant": ledger.get("accountant"),
        "tensors": described(state),
        "sha256": line["state"],
    }
    try:
        return GeneratorFacts.model_validate_json(dump(facts)), state, row
    except ValidationError as error:
        raise UserError(where, f"cannot be read ({'; '.join(reasons(error))})", _AGAIN) from error


def _cross_checked(where: str, facts: GeneratorFacts, row: Row) -> tuple[str, ...]:
    """What the facts, which are ``row``'s, were not compared with.

    Raises:
        UserError: they contradict themselves or the algorithm's plan.
    """
    checked = cross_check(row, dims=(facts.task.dim,), trust_plugin=True)
    if checked.contradictions:
        raise UserError(where, f"contradicts itself: {'; '.join(checked.contradictions)}", _AGAIN)
    return checked.notes


def _as_row(facts: GeneratorFacts) -> Row:
    """A package's facts as the row that they claim to be of, without scores; mechanisms are the plan's."""
    cell, spent = facts.cell, facts.epsilon_spent
    plan = None if facts.plan is None else asdict(facts.plan)
    private = {} if plan is None else planned(plan) | {"mechanisms": planned_mechanisms(plan), "unit": cell.unit_name, "noise": cell.noise}
    private |= {"selection": plan and plan["selection"], "tuning": tuning_of(cell.model_dump(mode="json"))}
    return Row(
        cell_id=cell.cell_id,
        source=cell.source,
        status="overspent" if plan is not None and (spent or 0.0) > plan["epsilon_target"] * (1 + 1e-6) else "ok",
        algorithm=cell.algorithm,
        label=cell.label,
        params=cell.params,
        dataset=cell.dataset.display,
        public=cell.public,
        public_hash=cell.public_hash,
        public_licence=cell.public_licence,
        clients=cell.clients,
        chance=1 / facts.task.classes,
        claim=plan["claim"] if plan is not None else "none",
        epsilon_spent=spent,
        accountant=facts.accountant,
        **private,
    )


def row_of_facts(generator: SavedGenerator) -> Row:
    """What a generator that may leave the simulation says of its privacy as a row: public facts alone, as a package holds them."""
    facts = generator.facts.model_copy(update={"cell": releasable(generator.facts.cell)})
    counted_by = None if generator.row is None else generator.row.counted_by
    return _as_row(facts).model_copy(update={"counted_by": counted_by})


def _is_kept(line: Mapping[str, Any] | None) -> bool:
    return line is not None and line["state"] is not None and line["yields"] == "generator"


def _of_package(folder: Path, cell: str | None) -> tuple[GeneratorFacts, Tensors]:
    """The facts and tensors of a released package, or of a run folder of fedsim 0.1."""
    paths = {path.stem: path for path in sorted([*folder.glob("*.json"), *(folder / "generators").glob("*.json")]) if path.stem.isalnum()}
    paths = {stem: path for stem, path in paths.items() if path.with_suffix(TENSORS).exists()}
    path = paths[_chosen(folder, cell, dict.fromkeys(paths, ""))]
    try:
        facts = GeneratorFacts.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        what = "; ".join(reasons(error)) if isinstance(error, ValidationError) else unread(error)
        raise UserError(str(path), f"cannot be read ({what})", _AGAIN) from error
    if facts.cell.cell_id != path.stem:
        raise UserError(str(path), f"holds the generator of cell {facts.cell.cell_id}", "give every file its own name back")
    state = read_state(path.with_suffix(TENSORS), facts.sha256, _AGAIN)
    try:
        check_alike(described(state), facts.tensors)
    except ValueError as error:
        raise UserError(str(path), f"is not what was saved ({error})", _AGAIN) from error
    return facts, state


def _chosen(run: Path, cell: str | None, known: Mapping[str, str]) -> str:
    """The one id that begins with ``cell``."""
    matching = [name for name in known if name.startswith(cell or "")]
    if len(matching) == 1:
        return matching[0]
    listed = [f"{name} ({known[name]})" if known[name] else name for name in (matching or known)]
    ids = ", ".join(listed[:MOST_NAMED]) + (f" and {len(listed) - MOST_NAMED} more" if len(listed) > MOST_NAMED else "")
    if not known:
        raise UserError(str(run), "there are no generators here", "give the folder of a run whose generative cells are finished")
    if cell is None or matching:
        raise UserError(str(run), f"there are several generators ({ids})", "name one with `cell`")
    raise UserError(f"cell {cell}", f"there is no generator of this cell in {run}", f"known: {ids}")


def _words(cell: Mapping[str, Any]) -> str:
    return setting(cell["label"], epsilon=cell["epsilon"], seed=cell["seed"])


def _made(where: str, facts: GeneratorFacts, params: Mapping[str, Any], state: Tensors) -> tuple[Algorithm, Generator]:
    """The algorithm and its generator, which is drawn from once: files that agree with each other can still be nonsense."""
    task = facts.task
    try:
        algorithm = build_algorithm(facts.cell.algorithm, dict(params), task)
        with torch.device("meta"):  # without memory: the sizes may be anybody's
            model = algorithm.build(0)
        check_released(model, state, task.clients, codes=algorithm.releases_codes())
        generator, _ = restored(algorithm, state, facts.plan, Seeds(facts.cell.seed))
        assert not is_classifier(generator)
        drawn = generator.sample(torch.arange(task.classes), Seeds(0).torch(Purpose.SYNTHESIS))
        if drawn.shape != (task.classes, task.dim) or not drawn.isfinite().all():
            raise ValueError(f"it draws {described({'x': drawn})['x']}, not finite rows [{task.classes}, {task.dim}]")
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever an algorithm makes of values that it did not make
        why = "; ".join(reasons(error)) if isinstance(error, ValidationError) else unread(error)
        raise UserError(where, f"is no generator of {facts.cell.label} ({type(error).__name__}: {why})", _AGAIN) from error
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
