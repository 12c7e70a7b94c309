"""Loads saved generators, draws samples from them, and writes packages for release.

A package is a file of tensors with a JSON file of facts about them. A generator is restored from
two results of its training: the server's state and the released client codes. ε covers both
already, so sampling costs no ε.

With secret noise, nothing in a package but these tensors was computed from private data. Even the
name of a package is a hash of public facts. So a generator may be released under its ε. (For
several generators of one data set see :mod:`fedsim.evidence.prove`.) With seeded noise anyone can
draw the noise again and subtract it: such generators are for simulation only.

Nothing is ever unpickled. The facts of a package are as stated by its author.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from fedsim.data.arrays import check_target, write_npz, write_sidecar
from fedsim.errors import UserError
from fedsim.evaluation.evaluate import synthesise
from fedsim.files import replaced
from fedsim.grid.models import Cell
from fedsim.json_lines import decode, encode, plain, plain_json
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.dp_sgd import DPSGD
from fedsim.methods.messages import Task, Tensors
from fedsim.methods.products import LONGEST, Generator, is_classifier, is_personal, own
from fedsim.plugins.claims import may_leave
from fedsim.plugins.registry import check_installed, lookup
from fedsim.privacy.plan import PrivacyPlan
from fedsim.results.columns import Row
from fedsim.results.join import read_results
from fedsim.results.lines import keep_state, read_state
from fedsim.results.store import RunFolder, unreadable
from fedsim.seeds import Purpose, Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.rounds import restored

TENSORS = ".safetensors"
"""The ending of a file of tensors."""
PUBLIC_COLUMNS = (
    "status",
    "source",
    "algorithm",
    "label",
    "params",
    "yields",
    "dataset",
    "public",
    "public_hash",
    "public_licence",
    "clients",
    "epsilon_target",
    "epsilon_spent",
    "delta",
    "unit",
    "relation",
    "trust",
    "scope",
    "claim",
    "check",
    "accountant",
    "noise",
    "mechanisms",
    "tuning",
    "selection",
    "noise_at",
    "counted_by",
    "chance",
)
"""The columns of a result that are no exact function of private data."""
SCALE = f"that of real embeddings of L2 norm 1; no synthetic embedding is longer than {LONGEST}"
"""The scale of synthetic embeddings, as manifests and commands describe it."""


def held_back(row: Row) -> str:
    """Return why a cell's generator may not leave the simulation, and the remedy.

    The text is empty if the generator may leave.

    Args:
        row: The result of the cell.
    """
    if not row.plan:
        return (
            "its method adds no noise in the run; run the grid with a private method, which "
            "`fedsim algorithms` lists"
        )
    if math.isinf(row.epsilon_target):
        return (
            "it was trained without noise, because its epsilon is infinite; run the grid with a "
            "finite epsilon"
        )
    if row.noise == "seeded":
        return (
            "the seed of its noise is known, so anyone can subtract the noise; run the grid with "
            "privacy: {noise: secret}"
        )
    if row.status != "ok":
        return (
            f"its status is {row.status}, so its ε is no guarantee; read the reason in "
            "report.html, and correct the method or run the grid with another one"
        )
    if not may_leave(row.claim, row.check):
        return (
            f"its claim is {row.claim} and its check {row.check or 'is missing'}; run the grid "
            "with a method whose claim is proved, or is stated and has passed `fedsim check`"
        )
    return ""


class GeneratorFacts(BaseModel):
    """The facts about a saved generator, which a package holds as a JSON file.

    Attributes:
        cell: The cell that was trained.
        task: The public facts that its algorithm got.
        plan: Its privacy plan; None without privacy.
        columns: The values of the cell's result by column. A package for release lacks the scores
            and all other private values.
        class_names: The names of the classes, which may be empty.
        versions: The versions of Python and of the packages that trained.
        sha256: The SHA-256 of the file of tensors.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        ser_json_inf_nan="strings",
    )

    cell: Cell
    task: Task
    plan: PrivacyPlan | None
    columns: Annotated[dict[str, Any], BeforeValidator(decode), PlainSerializer(encode)]
    class_names: tuple[str, ...]
    versions: dict[str, str]
    sha256: str

    @property
    def row(self) -> Row:
        """Return the result of the cell."""
        plan = {}
        if self.plan is not None:
            plan = asdict(self.plan)
        return Row(self.columns, plan)

    @property
    def held_back(self) -> str:
        """Return why the generator and its samples may not leave the simulation, and the remedy.

        The text is empty if they may.
        """
        return held_back(self.row)

    def check_release(self) -> None:
        """Check that the generator may leave the simulation.

        Raises:
            UserError: It may not.
        """
        if self.held_back:
            raise UserError(
                f"cell {self.cell.cell_id}",
                f"may not be released: {self.held_back}",
            )

    @property
    def public(self) -> GeneratorFacts:
        """Return the facts that may leave a run.

        With seeded noise nothing may leave, and the facts are unchanged. With secret noise they
        hold no exact function of private data, except the size of the task, which is public by
        assumption. A hash of the examples would tell a data set from its
        neighbour, and the ids of a cell and its training depend on that hash. The new id is
        therefore a hash of the public facts alone.
        """
        if self.cell.noise == "seeded":
            return self
        facts = self.cell.model_dump(
            mode="json",
            exclude={"cell_id", "training_id", "dataset_hash"},
        )
        text = json.dumps(facts, sort_keys=True)
        cell_id = hashlib.sha256(text.encode()).hexdigest()[:16]
        ids = {"cell_id": cell_id, "training_id": "", "dataset_hash": None}
        columns = {"cell_id": cell_id} | {name: self.columns[name] for name in PUBLIC_COLUMNS}
        columns["tuning"] = self.row.tuning and {**self.row.tuning, "trained": None}
        cell = self.cell.model_copy(update=ids)
        return self.model_copy(update={"cell": cell, "columns": columns})


@dataclass(frozen=True, eq=False)
class SavedGenerator:
    """A generator of an earlier run.

    Attributes:
        facts: Its cell, its plan and what was spent.
        synthesis: How it synthesises: a value of the algorithm's parameter, or ``client:K``. None
            if the algorithm has only one way.
        generator: The generator itself.
        vouched: Whether the lines of a run confirm the facts. Those of a package are unverified.
        state: The tensors from which it is made.
    """

    facts: GeneratorFacts
    synthesis: str | None
    generator: Generator
    vouched: bool
    state: Tensors = field(repr=False)

    def sample(self, labels: ArrayLike, seed: int | None = None) -> NDArray[np.float32]:
        """Return synthetic embeddings ``[n, d]`` for labels ``[n]`` in 0 .. C-1.

        Their scale is that of real embeddings of L2 norm 1, as ``fedsim embed`` writes them. None
        is longer than 1.2.

        Args:
            labels: One label per embedding.
            seed: The seed of the draw. Default: the cell's.

        Raises:
            UserError: A label is not in 0 .. C-1, or the seed is not in 0 .. 2^63 - 1.
        """
        y = np.asarray(labels)
        classes = self.facts.task.classes
        has_integers = y.ndim == 1 and y.dtype.kind in "iu"
        if not has_integers or (len(y) and not 0 <= y.min() <= y.max() < classes):
            raise UserError(
                "labels",
                "must be a list of whole numbers, each the number of a class",
                f"give labels 0 .. {classes - 1}",
            )
        stream = self._seeds(seed).torch(Purpose.SYNTHESIS)
        x = self.generator.sample(torch.from_numpy(y.astype(np.int64)), stream)
        return x.numpy().astype(np.float32, copy=False)

    def synthesise(
        self, per_class: int, seed: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return synthetic embeddings ``[n, d]`` with labels ``[n]``, equally many of each class.

        With the cell's own seed, synthesis and number per class, they are those that the shared
        generator was scored on.

        Args:
            per_class: The number of embeddings of each class.
            seed: The seed of the draw. Default: the cell's.

        Raises:
            UserError: A file of external samples has fewer of a class, or the seed is not in
                0 .. 2^63 - 1.
        """
        classes = self.facts.task.classes
        x, y = synthesise(self.generator, classes, per_class, self._seeds(seed))
        if len(y) < classes * per_class:
            raise UserError(
                "per_class",
                "the file of external samples has fewer",
                f"give at most {np.bincount(y).min()}, or use the file itself",
            )
        return x, y

    def manifest(self, per_class: int, seed: int | None = None) -> dict[str, Any]:
        """Return what a file of :meth:`synthesise` states about its embeddings and their privacy.

        Args:
            per_class: The number of embeddings of each class.
            seed: The seed of the draw. Default: the cell's.
        """
        row = self.facts.public.row
        columns = ("cell_id", "dataset_hash", *PUBLIC_COLUMNS)
        manifest = {"synthetic": True} | {name: plain(getattr(row, name)) for name in columns}
        vouched = "by nothing: no results were with it"
        if self.vouched:
            vouched = "by the results of its run"
        release = "under its epsilon"
        if self.facts.held_back:
            release = "simulation only"
        return manifest | {
            "epsilon": plain(row.epsilon_spent),
            "noise": self.facts.cell.noise,
            "synthesis": self.synthesis,
            "per_class": per_class,
            "scale": SCALE,
            "seed": self._seeds(seed).root,
            "class_names": list(self.facts.class_names),
            "versions": self.facts.versions,
            "tensors_sha256": self.facts.sha256,
            "vouched": vouched,
            "release": release,
            "held_back": self.facts.held_back,
        }

    def save(
        self, out: Path | str, per_class: int = 200, seed: int | None = None
    ) -> dict[str, Any]:
        """Write embeddings of :meth:`synthesise` into an .npz file, and their manifest beside it.

        Args:
            out: The file. It holds ``x``, ``y`` and, if they are known, ``class_names``.
            per_class: The number of embeddings of each class.
            seed: The seed of the draw. Default: the cell's.

        Returns:
            The manifest, which is also in the .npz file.

        Raises:
            UserError: The file cannot be written, or :meth:`synthesise` refuses the arguments.
        """
        out = Path(out)
        check_target(out)
        x, y = self.synthesise(per_class, seed)
        manifest = self.manifest(per_class, seed)
        arrays: dict[str, NDArray[Any]] = {"x": x, "y": y}
        if manifest["class_names"]:
            arrays["class_names"] = np.array(manifest["class_names"])
        write_npz(out, arrays, manifest)
        write_sidecar(out, manifest)
        return manifest

    def release(self, out: Path) -> Path:
        """Write a package that may leave the simulation into a folder.

        Args:
            out: The folder, which gets ``<id>.safetensors`` and ``<id>.json``.

        Returns:
            The path of the JSON file.

        Raises:
            UserError: The generator may not leave the simulation.
        """
        self.facts.check_release()
        facts = self.facts.public
        path = out / f"{facts.cell.cell_id}.json"
        sha256 = keep_state(path.with_suffix(TENSORS), self.state)
        facts = facts.model_copy(update={"sha256": sha256})
        with replaced(path) as new_file:
            new_file.write_text(facts.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return path

    def _seeds(self, seed: int | None) -> Seeds:
        """Return the seed tree of a draw; without a seed that of the cell."""
        root = seed
        if root is None:
            root = self.facts.cell.seed
        if not 0 <= root < 2**63:
            raise UserError(
                "seed",
                f"{root} is not allowed",
                "give a whole number from 0 to 2^63 - 1",
            )
        return Seeds(root)


def load_generator(
    run: Path | str,
    cell: str | None = None,
    synthesis: str | None = None,
    *,
    trust_plugin: bool = False,
) -> SavedGenerator:
    """Load a generator of a run or of a released package.

    Its tensors must have the SHA-256 that was noted when they were written.

    Args:
        run: The run folder, or the folder of a package.
        cell: The cell's id or its beginning. It may be left out if there is one generator.
        synthesis: One of the algorithm's ``syntheses``, or ``client:K``. Default: the cell's own.
        trust_plugin: Whether to run the code of an algorithm that the facts name as a file, or as a
            module that is not installed.

    Raises:
        UserError: There is no such generator, its file was changed, its algorithm is a plug-in
            that is neither installed nor trusted, or it cannot synthesise in this way.
    """
    folder = RunFolder(Path(run))
    vouched = folder.lines("trainings").exists()
    if vouched:
        facts, state = _of_run(folder, cell)
    else:
        facts, state = _of_package(folder.path, cell)
    name = facts.cell.algorithm
    if not trust_plugin:
        check_installed(name, f"{run}, cell {facts.cell.cell_id}")
    params = dict(facts.cell.params)
    is_parameter = synthesis in lookup(name).syntheses
    if is_parameter:
        params["synthesis"] = synthesis
    algorithm = build_algorithm(name, params, facts.task)
    product, _ = restored(algorithm, state, facts.plan, Seeds(facts.cell.seed))
    assert not is_classifier(product)
    generator: Generator = product
    if synthesis is not None and not is_parameter:
        generator = _version_of_client(synthesis, facts, algorithm, generator)
    synthesis = synthesis or facts.cell.params.get("synthesis")
    return SavedGenerator(facts, synthesis, generator, vouched, state)


def _version_of_client(
    synthesis: str, facts: GeneratorFacts, algorithm: Algorithm, generator: Generator
) -> Generator:
    """Return the version of a generator for the client K of ``client:K``.

    Raises:
        UserError: The text is not of this form, there is no such client, or it has no generator of
            its own that was released.
    """
    where = f"synthesis {synthesis}"
    kind, _, number = synthesis.partition(":")
    if kind != "client" or not number.isdigit():
        ways = list(algorithm.syntheses)
        if is_personal(generator):
            ways.append("client:0")
        hint = "leave out `synthesis`"
        if ways:
            hint = f"give {' or '.join(ways)}, or {hint}"
        raise UserError(where, f"{facts.cell.label} cannot draw in this way", hint)
    client = int(number)
    clients = facts.task.clients
    if client >= clients:
        hint = f"give client:0 .. client:{clients - 1}"
        raise UserError(where, f"there are {clients} clients", hint)
    if not is_personal(generator):
        problem = f"{facts.cell.label} has one generator for all clients"
        raise UserError(where, problem, "leave out `synthesis`")
    is_private = facts.plan is not None and facts.plan.adds_noise
    if is_private and isinstance(algorithm, DPSGD) and not algorithm.releases_codes():
        raise UserError(
            where,
            "this model was trained with noised: shared, which adds no noise to the codes of "
            "clients, so each code stays with its client and cannot be used here",
            f"give {' or '.join(algorithm.syntheses)}, or train again with noised: all",
        )
    return own(generator, client)


def _of_run(folder: RunFolder, cell: str | None) -> tuple[GeneratorFacts, Tensors]:
    """Return the facts of a run's generator, from its lines, and its tensors.

    Args:
        folder: The run folder.
        cell: The cell's id or its beginning.
    """
    results = read_results(folder.path)
    labels = {
        cell_id: f" ({line['cell']['label']})"
        for cell_id, line in results.trained.items()
        if line["state"] and line["yields"] == "generator"
    }
    chosen = _chosen(folder.path, cell, labels)
    # The entry of the present grid comes last, so the dictionary keeps that one.
    entry = {entry.cell_id: entry for entry in results.every_entry}[chosen]
    line = results.trained[chosen]
    row = results.row(entry, evaluated=False)
    assert row is not None
    facts = {
        "task": line["task"],
        "plan": line["plan"],
        "class_names": line["class_names"],
        "versions": line["versions"],
        "columns": encode(row.values),
        "sha256": line["state"],
        "cell": {**line["cell"], "cell_id": entry.cell_id, "label": entry.label},
    }
    where = f"{folder.lines('trainings')}, training {entry.training_id}"
    checked = _checked_facts(where, plain_json(facts))
    return checked, read_state(folder.state(entry.training_id), line["state"])


def _of_package(folder: Path, cell: str | None) -> tuple[GeneratorFacts, Tensors]:
    """Return the facts and the tensors of a released package.

    Args:
        folder: The folder of the package.
        cell: The cell's id or its beginning.
    """
    paths = {
        path.stem: path
        for path in sorted(folder.glob("*.json"))
        if path.with_suffix(TENSORS).exists()
    }
    path = paths[_chosen(folder, cell, dict.fromkeys(paths, ""))]
    facts = _checked_facts(str(path), path.read_bytes())
    return facts, read_state(path.with_suffix(TENSORS), facts.sha256)


def _checked_facts(where: str, text: str | bytes) -> GeneratorFacts:
    """Return the facts that a JSON text holds, or refuse it; ``where`` names it in messages."""
    try:
        return GeneratorFacts.model_validate_json(text)
    except ValidationError as error:
        raise unreadable(where, error) from error


def _chosen(folder: Path, cell: str | None, labels: dict[str, str]) -> str:
    """Return the id of the one generator whose id begins with ``cell``.

    Args:
        folder: The folder, for messages.
        cell: The beginning of the id. None: any.
        labels: What a message says behind the id of each generator that is there.

    Raises:
        UserError: There is no such generator, or there are several.
    """
    matching = [cell_id for cell_id in labels if cell_id.startswith(cell or "")]
    if len(matching) == 1:
        return matching[0]
    if not labels:
        raise UserError(
            str(folder),
            "there are no generators here",
            "give the folder of a run with a finished cell of a generator",
        )
    problem = f"holds {len(matching)} generators to choose from"
    if not matching:
        problem = f"no generator here has a cell whose id begins with '{cell}'"
    ids = ", ".join(f"{cell_id}{labels[cell_id]}" for cell_id in (matching or list(labels))[:4])
    raise UserError(str(folder), problem, f"choose one with `cell`, such as {ids}")
