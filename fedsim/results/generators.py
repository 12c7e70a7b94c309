"""Saved generators: made again from what a training left; a released one is a package of tensors
and the facts about them.

A generator is made from the server's state and the released client codes, which are private
already, so to sample from it costs nothing. With secret noise nothing else in a package was
computed from private data, nor is its name, so one may be released under its epsilon (several of
one data set: :mod:`fedsim.evidence.prove`). With seeded noise anyone can draw the noise again and
take it off: they are for simulation only. Nothing is ever unpickled. A package's facts are its
author's word.
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
from fedsim.evaluation.judge import synthesise
from fedsim.files import replaced
from fedsim.grid.models import Cell
from fedsim.json_lines import decode, encode, plain, plain_json, reasons
from fedsim.methods.messages import Task, Tensors
from fedsim.methods.products import LONGEST, Generator, is_classifier, is_personal, own
from fedsim.plugins.claims import may_leave
from fedsim.plugins.registry import check_installed, lookup
from fedsim.privacy.plan import PrivacyPlan
from fedsim.results.columns import Row
from fedsim.results.join import read_results
from fedsim.results.lines import keep_state, read_state
from fedsim.results.store import RESTORE, RunFolder
from fedsim.seeds import Purpose, Seeds
from fedsim.training.cohort import build_algorithm
from fedsim.training.rounds import restored

TENSORS = ".safetensors"
PUBLIC_COLUMNS = (
    *(
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
    ),
    *(
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
    ),
    *("mechanisms", "tuning", "selection", "noise_at", "counted_by", "chance"),
)
"""The columns of a row that are no exact function of private data."""
SCALE = f"that of real rows of L2 norm 1; no synthetic row is longer than {LONGEST}"
"""The scale of synthetic rows, as manifests and commands say it."""
TO_LEAVE = (
    "a generator may leave under privacy: {noise: secret}, a finite epsilon, and a claim "
    "that is proved, or stated and checked"
)


def held_back(row: Row, noise: str | None) -> str:
    """Why a cell's generator, whose noise is ``seeded`` or ``secret``, may not leave the
    simulation; "" where it may.
    """
    if not row.plan or math.isinf(row.epsilon_target):
        return "it carries no noise of its run"
    if noise == "seeded":
        return "the seed of its noise is known, and with it anyone can take the noise off"
    if row.status != "ok" or not may_leave(row.claim, row.check):
        return f"its status is {row.status}, its claim {row.claim}, its check {row.check or 'none'}"
    return ""


class GeneratorFacts(BaseModel):
    """What is known of a saved generator, and what a package's JSON file says of it.

    ``columns`` are its run's row, in a package without scores and all else that is private;
    ``sha256`` is that of the tensors' file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    cell: Cell
    task: Task
    plan: PrivacyPlan | None
    columns: Annotated[dict[str, Any], BeforeValidator(decode), PlainSerializer(encode)]
    class_names: tuple[str, ...]
    versions: dict[str, str]
    sha256: str

    @property
    def row(self) -> Row:
        """The row of its cell."""
        return Row(self.columns, asdict(self.plan) if self.plan else {})

    @property
    def held_back(self) -> str:
        """Why nothing that is made from it may leave the simulation; "" where everyone may have it,
        under its epsilon.
        """
        return held_back(self.row, self.cell.noise)

    def check_release(self) -> None:
        """Raise a UserError where it may not leave under its epsilon."""
        if self.held_back:
            raise UserError(
                f"cell {self.cell.cell_id}", f"may not be released: {self.held_back}", TO_LEAVE
            )

    @property
    def public(self) -> GeneratorFacts:
        """What leaves a run: with secret noise without any exact function of private data.

        A hash of the rows, which the ids of a cell and its training depend on too, tells a data set
        from its neighbour. The id is then one of the public facts alone.
        """
        if self.cell.noise == "seeded":
            return self
        told = self.cell.model_dump(mode="json", exclude={"cell_id", "training_id", "dataset_hash"})
        name = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
        cell = self.cell.model_copy(
            update={"cell_id": name, "training_id": "", "dataset_hash": None}
        )
        columns = {"cell_id": name, **{column: self.columns[column] for column in PUBLIC_COLUMNS}}
        columns["tuning"] = self.row.tuning and {**self.row.tuning, "trained": None}
        return self.model_copy(update={"cell": cell, "columns": columns})


@dataclass(frozen=True, eq=False)
class SavedGenerator:
    """A generator of an earlier run.

    Attributes:
        facts: its cell, plan and what was spent.
        synthesis: how it synthesises, as the algorithm's parameter says or ``client:K``; None where
            the algorithm has one way only.
        generator: the generator itself.
        vouched: whether the result lines of a run say so; all that a package says is by its own
            word.
        state: what it is made from.
    """

    facts: GeneratorFacts
    synthesis: str | None
    generator: Generator
    vouched: bool
    state: Tensors = field(repr=False)

    def sample(self, labels: ArrayLike, seed: int | None = None) -> NDArray[np.float32]:
        """Synthetic embeddings ``[n, d]`` for labels ``[n]`` in 0 .. C-1.

        Their scale is that of real rows of L2 norm 1, as ``fedsim embed`` writes them; none is
        longer than 1.2.

        Args:
            labels: one per row.
            seed: of the draw; default: the cell's.

        Raises:
            UserError: a label is not in 0 .. C-1.
        """
        y = np.asarray(labels)
        classes = self.facts.task.classes
        if (
            y.ndim != 1
            or y.dtype.kind not in "iu"
            or (len(y) and not 0 <= y.min() <= y.max() < classes)
        ):
            raise UserError(
                "labels",
                "are not a row of whole numbers of known classes",
                f"give labels 0 .. {classes - 1}",
            )
        x = self.generator.sample(
            torch.from_numpy(y.astype(np.int64)), self._seeds(seed).torch(Purpose.SYNTHESIS)
        )
        return x.numpy().astype(np.float32, copy=False)

    def synthesise(
        self, per_class: int, seed: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """``per_class`` synthetic embeddings of every class, and their labels; by default those
        that the cell was scored on.
        """
        x, y = synthesise(self.generator, self.facts.task.classes, per_class, self._seeds(seed))
        if len(y) < self.facts.task.classes * per_class:
            raise UserError(
                "per_class",
                "the given rows are fewer",
                f"give {np.bincount(y).min()} at most, or take the file as it is",
            )
        return x, y

    def manifest(self, per_class: int, seed: int | None = None) -> dict[str, Any]:
        """What a file of :meth:`synthesise` has to carry: what the rows are and what privacy was
        paid for them.
        """
        row = self.facts.public.row
        return {
            "synthetic": True,
            **{
                name: plain(getattr(row, name))
                for name in ("cell_id", "dataset_hash", *PUBLIC_COLUMNS)
            },
            "epsilon": plain(row.epsilon_spent),
            "noise": self.facts.cell.noise,
            "synthesis": self.synthesis,
            "per_class": per_class,
            "scale": SCALE,
            "seed": self._seeds(seed).root,
            "class_names": list(self.facts.class_names),
            "versions": self.facts.versions,
            "tensors_sha256": self.facts.sha256,
            "vouched": "by the results of its run"
            if self.vouched
            else "by nothing: no results were with it",
            "release": "simulation only" if self.facts.held_back else "under its epsilon",
            "held_back": self.facts.held_back,
        }

    def save(
        self, out: Path | str, per_class: int = 200, seed: int | None = None
    ) -> dict[str, Any]:
        """Write the rows of :meth:`synthesise` into an .npz file, with their manifest, also as JSON
        beside it.

        Returns:
            The manifest.

        Raises:
            UserError: the file cannot be written.
        """
        out = Path(out)
        check_target(out)
        x, y = self.synthesise(per_class, seed)
        manifest = self.manifest(per_class, seed)
        names = manifest["class_names"]
        write_npz(
            out, {"x": x, "y": y, **({"class_names": np.array(names)} if names else {})}, manifest
        )
        write_sidecar(out, manifest)
        return manifest

    def release(self, out: Path) -> Path:
        """Write a package that may leave the simulation, ``<id>.safetensors`` and ``<id>.json``,
        into a folder; the path of the latter.

        Raises:
            UserError: it may not leave under its epsilon.
        """
        self.facts.check_release()
        facts = self.facts.public
        path = out / f"{facts.cell.cell_id}.json"
        facts = facts.model_copy(
            update={"sha256": keep_state(path.with_suffix(TENSORS), self.state)}
        )
        with replaced(path) as part:
            part.write_text(facts.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return path

    def _seeds(self, seed: int | None) -> Seeds:
        if seed is None:
            root = self.facts.cell.seed
        else:
            root = seed
        if not 0 <= root < 2**63:
            raise UserError("seed", f"{root} is no seed", "give a whole number in 0 .. 2^63 - 1")
        return Seeds(root)


def load_generator(
    run: Path | str,
    cell: str | None = None,
    synthesis: str | None = None,
    *,
    trust_plugin: bool = False,
) -> SavedGenerator:
    """Load a generator that a bench kept, or one that was released, if its tensors are those whose
    hash was noted.

    Args:
        run: the run folder, or the folder of a released package.
        cell: the cell's id or its beginning; may be left out where there is one generator.
        synthesis: one of the algorithm's ``syntheses``, or ``client:K``, instead of the cell's own
            way.
        trust_plugin: also run the code of an algorithm that the facts name as a file or a module
            that is not installed.

    Raises:
        UserError: there is no such generator, it is not what was saved, its algorithm is a plug-in,
            or does not synthesise like that.
    """
    folder = RunFolder(Path(run))
    vouched = folder.lines("trainings").exists()
    if vouched:
        facts, state = _of_run(folder, cell)
    else:
        facts, state = _of_package(folder.path, cell)
    where = f"{run}, cell {facts.cell.cell_id}"
    option = f"synthesis {synthesis}"
    if not trust_plugin:
        check_installed(facts.cell.algorithm, where)
    ways = lookup(facts.cell.algorithm).syntheses
    params = facts.cell.params
    kind, _, client = (synthesis or "").partition(":")
    if synthesis in ways:
        params = {**params, "synthesis": synthesis}
    elif synthesis is not None and not (kind == "client" and client.isdigit()):
        raise UserError(
            option,
            f"is not one of {facts.cell.label}'s",
            f"give {', '.join([*ways, 'client:0'])}, or leave it out",
        )
    algorithm = build_algorithm(facts.cell.algorithm, dict(params), facts.task)
    made, _ = restored(algorithm, state, facts.plan, Seeds(facts.cell.seed))
    assert not is_classifier(made)
    generator: Generator = made
    if client:
        if int(client) >= facts.task.clients:
            raise UserError(
                option,
                f"there are {facts.task.clients} clients",
                f"give client:0 .. client:{facts.task.clients - 1}",
            )
        if not is_personal(generator):
            raise UserError(
                option, f"{facts.cell.label} has one generator for all clients", "leave it out"
            )
        if not algorithm.releases_codes():
            what = (
                "under noised: shared the client codes carry no noise, so they never left "
                "their clients"
            )
            raise UserError(option, what, f"give {' or '.join(ways)}, or train with noised: all")
        generator = own(generator, int(client))
    return SavedGenerator(
        facts, synthesis or facts.cell.params.get("synthesis"), generator, vouched, state
    )


def _of_run(folder: RunFolder, cell: str | None) -> tuple[GeneratorFacts, Tensors]:
    """The facts of a run's generator, from its result lines, and what it is made from."""
    results = read_results(folder.path)
    trained = results.trained.items()
    made = {
        id_: f" ({line['cell']['label']})"
        for id_, line in trained
        if line["state"] and line["yields"] == "generator"
    }
    chosen = _chosen(folder.path, cell, made)
    entry = {entry.cell_id: entry for entry in results.every_entry}[chosen]
    line = results.trained[chosen]
    row = results.row(entry, judged=False)
    assert row is not None
    facts = {name: line[name] for name in ("task", "plan", "class_names", "versions")} | {
        "columns": encode(row.values),
        "sha256": line["state"],
    }
    facts["cell"] = {**line["cell"], "cell_id": entry.cell_id, "label": entry.label}
    read = _read(f"{folder.lines('trainings')}, training {entry.training_id}", plain_json(facts))
    return read, read_state(folder.state(entry.training_id), line["state"])


def _of_package(folder: Path, cell: str | None) -> tuple[GeneratorFacts, Tensors]:
    """The facts and tensors of a released package."""
    paths = {
        path.stem: path
        for path in sorted(folder.glob("*.json"))
        if path.with_suffix(TENSORS).exists()
    }
    path = paths[_chosen(folder, cell, dict.fromkeys(paths, ""))]
    facts = _read(str(path), path.read_bytes())
    return facts, read_state(path.with_suffix(TENSORS), facts.sha256)


def _read(where: str, text: str | bytes) -> GeneratorFacts:
    try:
        return GeneratorFacts.model_validate_json(text)
    except ValidationError as error:
        raise UserError(where, f"cannot be read ({'; '.join(reasons(error))})", RESTORE) from error


def _chosen(run: Path, cell: str | None, known: dict[str, str]) -> str:
    """The one id that begins with ``cell``; ``known`` says what each is."""
    matching = [id_ for id_ in known if id_.startswith(cell or "")]
    if len(matching) == 1:
        return matching[0]
    if not known:
        raise UserError(
            str(run),
            "there are no generators here",
            "give the folder of a run whose generative cells are finished",
        )
    ids = ", ".join(f"{id_}{known[id_]}" for id_ in (matching or [*known])[:4])
    if matching:
        what = "there are several generators"
    else:
        what = f"there is no generator of cell {cell}"
    raise UserError(str(run), f"{what}; some are {ids}", "name one with `cell`")
