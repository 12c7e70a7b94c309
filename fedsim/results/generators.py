"""Saved generators: made again from what a training left; a released one is a package of tensors and the facts about them.

A generator is made from the server's state and the released client codes, which are private already, so to sample from it costs nothing.
With secret noise nothing else in a package was computed from private data, nor is its name, so one may be released under its epsilon
(several of one data set: :mod:`fedsim.evidence.prove`). With seeded noise anyone can draw the noise again and take it off: they are for
simulation only. Nothing is ever unpickled. A package's facts are its author's word.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_serializer, field_validator
from safetensors.torch import save

from fedsim.data.arrays import check_target, read_parquet_manifest, write_npz, write_parquet, write_sidecar
from fedsim.errors import UserError
from fedsim.evaluation.judge import synthesise
from fedsim.files import replaced, unread
from fedsim.grid.models import Cell
from fedsim.json_lines import decode, dump, encode, reasons
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.messages import Task, Tensors
from fedsim.methods.products import Generator, is_classifier, is_personal, own
from fedsim.plugins.claims import may_leave
from fedsim.plugins.registry import check_installed, lookup
from fedsim.privacy.plan import PrivacyPlan
from fedsim.results.columns import COLUMNS, Row, large_deltas
from fedsim.results.folder import RunFolder
from fedsim.results.run import Lines, entries
from fedsim.results.trained import read_state
from fedsim.seeds import Purpose, Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.rounds import restored
from fedsim.words import setting

TENSORS = ".safetensors"
DRAWN = 4
"""Times the memory of its rows that a draw takes at least, with random numbers and what is computed between."""
MOST_NAMED = 4
"""Generators that an error names: a line that is not shortened has room for them."""
PUBLIC_COLUMNS = (
    *("status", "source", "algorithm", "label", "params", "yields", "dataset", "public", "public_hash", "public_licence", "clients"),
    *("epsilon_target", "epsilon_spent", "delta", "unit", "relation", "trust", "scope", "claim", "check", "accountant", "noise"),
    *("mechanisms", "tuning", "selection", "noise_at", "counted_by", "chance"),
)
"""The columns of a row that are no exact function of private data."""
RELEASE_HINT = "a generator may leave under privacy: {noise: secret}, a finite epsilon, and a claim that is proved, or stated and checked"
_AGAIN = "run the cell again in a new folder"


class GeneratorFacts(BaseModel):
    """What is known of a saved generator, and what a package's JSON file says of it.

    ``row`` is its run's, in a package without scores and all else that is private; ``sha256`` is that of the ``.safetensors`` file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", arbitrary_types_allowed=True)

    cell: Cell
    task: Task
    plan: PrivacyPlan | None
    row: Row
    class_names: tuple[str, ...]
    versions: dict[str, str]
    sha256: str

    @property
    def held_back(self) -> str:
        """Why nothing that is made from it may leave the simulation; "" where everyone may have it, under its epsilon."""
        row = self.row
        if row.epsilon_target is None or math.isinf(row.epsilon_target):
            return "it carries no noise"
        if self.cell.noise == "seeded":
            return "the seed of its noise is known, and with it anyone can take the noise off"
        if row.status != "ok" or not may_leave(row.claim, row.check):
            return f"its status is {row.status}, its claim {row.claim}, its check {row.check or 'none'}"
        return ""

    @property
    def public(self) -> GeneratorFacts:
        """What leaves a run: with secret noise without any exact function of private data.

        A hash of the rows, which the ids of a cell and its training depend on too, tells a data set from its neighbour. The id is then one
        of the public facts alone.
        """
        if self.cell.noise == "seeded":
            return self
        told = self.cell.model_dump(mode="json", exclude={"cell_id", "training_id", "dataset_hash"})
        name = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
        cell = self.cell.model_copy(update={"cell_id": name, "training_id": "", "dataset_hash": None})
        values = {"cell_id": name, **{column: getattr(self.row, column) for column in PUBLIC_COLUMNS}}
        values["tuning"] = self.row.tuning and {**self.row.tuning, "trained": None}
        return self.model_copy(update={"cell": cell, "row": Row(values, self.row.plan)})

    @field_validator("row", mode="plain")
    @classmethod
    def _row(cls, values: Any, info: ValidationInfo) -> Row:
        """With every number a number, as columns declare it."""
        values = decode(values)
        for name, value in values.items():
            if name not in COLUMNS or not (COLUMNS[name].dtype == "object" or value is None or isinstance(value, int | float)):
                raise ValueError(f"{name} cannot be {value!r}")
        return Row(values, asdict(info.data["plan"]) if info.data.get("plan") else {})

    @field_serializer("row")
    def _values(self, row: Row) -> Any:
        return encode(row.values)


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
    facts, state = _of_run(RunFolder(Path(run)), cell)
    where = f"{run}, cell {facts.cell.cell_id}"
    if not trust_plugin:
        check_installed(facts.cell.algorithm, where)
    _made(where, facts, facts.cell.params, state)
    if facts.held_back:
        raise UserError(f"cell {facts.cell.cell_id}", f"may not be released: {facts.held_back}", RELEASE_HINT)
    content = save({name: value.contiguous() for name, value in state.items()})
    facts = facts.public.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
    path = out / f"{facts.cell.cell_id}.json"
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
        vouched: whether the result lines of a run say so; all that a package says is by its own word.
    """

    facts: GeneratorFacts
    synthesis: str | None
    generator: Generator
    vouched: bool

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of its budget has to know."""
        return tuple(large_deltas([self.facts.row]))

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
        public = self.facts.public
        cell, row = public.cell, public.row
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
            **{name: encode(getattr(row, name)) for name in ("epsilon_target", "delta", "unit", "trust", "scope", "claim", "check")},
            "epsilon": encode(row.epsilon_spent),
            "accountant": row.accountant,
            "status": row.status,
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
            write_npz(out, {"x": x, "y": y, **({"class_names": np.array(names)} if names else {})}, manifest)
        write_sidecar(out, manifest)
        return manifest

    def _seeds(self, seed: int | None) -> Seeds:
        root = self.facts.cell.seed if seed is None else seed
        if not 0 <= root < 2**63:
            raise UserError("seed", f"{root} is no seed", "give a whole number in 0 .. 2^63 - 1")
        return Seeds(root)


def load_generator(run: Path | str, cell: str | None = None, synthesis: str | None = None, *, trust_plugin: bool = False) -> SavedGenerator:
    """Load a generator that a bench kept, or one that was released, if its tensors are those whose hash was noted.

    Args:
        run: the run folder, or the folder of a released package.
        cell: the cell's id or its beginning; may be left out where there is one generator.
        synthesis: one of the algorithm's ``syntheses``, or ``client:K``, instead of the cell's own way.
        trust_plugin: also run the code of an algorithm that the facts name as a file or a module that is not installed.

    Raises:
        UserError: there is no such generator, it is not what was saved, its algorithm is a plug-in, or does not synthesise like that.
    """
    folder = RunFolder(Path(run))
    vouched = folder.lines("trainings").exists()
    facts, state = _of_run(folder, cell) if vouched else _of_package(folder.path, cell)
    where = f"{run}, cell {facts.cell.cell_id}"
    if not trust_plugin:
        check_installed(facts.cell.algorithm, where)
    kind, colon, client = (synthesis or "").partition(":")
    ways, option = lookup(facts.cell.algorithm).syntheses, f"synthesis {synthesis}"
    params = {**facts.cell.params, "synthesis": kind} if kind in ways else facts.cell.params
    if synthesis is not None and kind != "client" and not ways:
        raise UserError(option, f"{facts.cell.label} has one way to synthesise", "leave it out")
    algorithm, generator = _made(where, facts, params, state)
    saved = SavedGenerator(facts, facts.cell.params.get("synthesis"), generator, vouched)
    if synthesis is None:
        return saved
    if kind in ways and not colon:
        return replace(saved, synthesis=kind)
    if kind != "client" or not client.isdigit():
        raise UserError(option, "is not known", f"give {''.join(f'{way}, ' for way in ways)}or client: and a number such as client:3")
    return replace(saved, synthesis=synthesis, generator=_of_client(algorithm, generator, int(client), facts, option))


def _of_run(folder: RunFolder, cell: str | None) -> tuple[GeneratorFacts, Tensors]:
    """The facts of a run's generator, from its result lines, and what it is made from."""
    lines = Lines.read(folder.path)
    held = {e.cell_id: e for e in [*lines.every_entry(), *entries(folder.path, lines)] if _is_kept(lines.trainings.get(e.training_id))}
    entry = held[_chosen(folder.path, cell, {id_: _words(lines.trainings[e.training_id]["cell"]) for id_, e in held.items()})]
    line = lines.trainings[entry.training_id]
    facts = {name: line[name] for name in ("task", "plan", "class_names", "versions")}
    facts |= {
        "cell": {**line["cell"], "cell_id": entry.cell_id, "label": entry.label},
        "row": lines.trained_row(entry, judged=False).values,
        "sha256": line["state"],
    }
    try:
        known = GeneratorFacts.model_validate_json(dump(facts))
    except ValidationError as error:
        where = f"{folder.lines('trainings')}, training {entry.training_id}"
        raise UserError(where, f"cannot be read ({'; '.join(reasons(error))})", _AGAIN) from error
    return known, read_state(folder.state(entry.training_id), line["state"], _AGAIN)


def _is_kept(line: Mapping[str, Any] | None) -> bool:
    return line is not None and line["state"] is not None and line["yields"] == "generator"


def _of_package(folder: Path, cell: str | None) -> tuple[GeneratorFacts, Tensors]:
    """The facts and tensors of a released package."""
    paths = {path.stem: path for path in sorted(folder.glob("*.json")) if path.with_suffix(TENSORS).exists()}
    path = paths[_chosen(folder, cell, dict.fromkeys(paths, ""))]
    try:
        facts = GeneratorFacts.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        what = "; ".join(reasons(error)) if isinstance(error, ValidationError) else unread(error)
        raise UserError(str(path), f"cannot be read ({what})", _AGAIN) from error
    return facts, read_state(path.with_suffix(TENSORS), facts.sha256, _AGAIN)


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
    """The algorithm and its generator."""
    try:
        algorithm = build_algorithm(facts.cell.algorithm, dict(params), facts.task)
        generator, _ = restored(algorithm, state, facts.plan, Seeds(facts.cell.seed))
        assert not is_classifier(generator)
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
