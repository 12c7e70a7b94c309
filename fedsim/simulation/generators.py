"""Saved generators: tensors as safetensors, the facts about them as JSON; nothing is ever unpickled.

A generator is made from the server's state and the released client codes, which are private already, so to sample from it costs nothing.
With secret noise nothing else in these files was computed from private data, nor is their name, so they may be released under their
epsilon. With seeded noise anyone can draw the noise again and take it off: they are for simulation only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedsim.atomic import replaced
from fedsim.errors import UserError
from fedsim.evaluation.judge import synthesise
from fedsim.grid.models import Cell
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.messages import Task, Tensors
from fedsim.methods.products import Generator, is_personal, own
from fedsim.methods.registry import lookup
from fedsim.privacy.plan import PrivacyPlan
from fedsim.results.folder import RunFolder
from fedsim.results.lines import encode
from fedsim.seeds import Purpose, Seeds
from fedsim.simulation.cohort import build_algorithm
from fedsim.simulation.rounds import restored
from fedsim.simulation.trial import Trial

TENSORS = ".safetensors"
RELEASABLE = ("proved", "checked")
"""Claims under which a release is what its epsilon says."""


class GeneratorFacts(BaseModel):
    """What a saved generator's JSON file says: its cell, the public facts, the plan, and what was spent."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    cell: Cell
    task: Task
    plan: PrivacyPlan | None
    class_names: tuple[str, ...]
    status: Literal["ok", "overspent", "unaccounted"]
    epsilon_spent: float | None
    accountant: str | None
    versions: dict[str, str]

    @property
    def held_back(self) -> str:
        """Why nothing that is made from it may leave the simulation; "" where everyone may have it, under its epsilon."""
        plan = self.plan
        if plan is None or plan.epsilon_target == float("inf"):
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
) -> None:
    """Write ``generators/<cell_id>.safetensors`` and ``.json`` into a run folder, named by the id of :func:`releasable`.

    Args:
        run: the run folder.
        trial: the cell.
        class_names: what the classes are called; may be empty.
        state: what the generator is made from (``Trained.state``).
        spent: status, epsilon spent and accountant.
        versions: of the packages that computed.
    """
    cell = releasable(trial.cell)
    facts = GeneratorFacts(cell=cell, task=trial.task, plan=trial.plan, class_names=class_names, versions=dict(versions), **spent)
    path = run.generator(cell.cell_id)
    with replaced(path.with_suffix(TENSORS)) as part:
        save_file({name: value.contiguous() for name, value in state.items()}, part)
    with replaced(path) as part:
        part.write_text(facts.model_dump_json(indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True, eq=False)
class SavedGenerator:
    """A generator of an earlier run.

    Attributes:
        facts: its cell, plan and what was spent.
        synthesis: how it synthesises, as the algorithm's parameter says or ``client:K``; None where the algorithm has one way only.
        generator: the generator itself.
    """

    facts: GeneratorFacts
    synthesis: str | None
    generator: Generator

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
        """``per_class`` synthetic embeddings of every class, and their labels; by default those that the cell was scored on."""
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
            "release": "simulation only" if self.facts.held_back else "under its epsilon",
            "held_back": self.facts.held_back,
        }

    def _seeds(self, seed: int | None) -> Seeds:
        return Seeds(self.facts.cell.seed if seed is None else seed)


def load_generator(run: Path | str, cell: str | None = None, synthesis: str | None = None) -> SavedGenerator:
    """Load a generator that a bench saved.

    Args:
        run: the run folder.
        cell: the cell's id or its beginning; may be left out where there is one generator.
        synthesis: one of the algorithm's ``syntheses``, or ``client:K``, instead of the cell's own way.

    Raises:
        UserError: there is no such generator, it cannot be read, or the algorithm does not synthesise like that.
    """
    facts, state = read_generator(_find(Path(run), cell))
    kind, colon, client = (synthesis or "").partition(":")
    ways, where = lookup(facts.cell.algorithm).syntheses, f"--synthesis {synthesis}"
    params = {**facts.cell.params, "synthesis": kind} if kind in ways else facts.cell.params
    if synthesis is not None and kind != "client" and not ways:
        raise UserError(where, f"{facts.cell.label} has one way to synthesise", "leave it out")
    algorithm = build_algorithm(facts.cell.algorithm, params, facts.task)
    generator, _ = restored(algorithm, state, facts.plan, Seeds(facts.cell.seed))
    if synthesis is None:
        return SavedGenerator(facts, facts.cell.params.get("synthesis"), generator)
    if kind in ways and not colon:
        return SavedGenerator(facts, kind, generator)
    if kind != "client" or not client.isdigit():
        raise UserError(where, "is not known", f"give {''.join(f'{way}, ' for way in ways)}or client: and a number such as client:3")
    return SavedGenerator(facts, synthesis, _of_client(algorithm, generator, int(client), facts, where))


def read_generator(path: Path) -> tuple[GeneratorFacts, Tensors]:
    """What :func:`save_generator` wrote: the facts, and what the generator is made from.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return GeneratorFacts.model_validate_json(path.read_text(encoding="utf-8")), load_file(path.with_suffix(TENSORS))
    except (OSError, ValidationError, SafetensorError) as error:
        what = f"cannot be read ({' '.join(str(error).split())[:160]})"
        raise UserError(str(path), what, "run the cell again in a new folder") from error


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
    if len(found) == 1:
        return found[0]
    ids = _listed([path.stem for path in (found or sorted(folder.glob("*.json")))])
    if not ids:
        raise UserError(str(run), "there are no generators here", "give the folder of a run whose generative cells are finished")
    if cell is None or found:
        raise UserError(str(run), f"there are several generators ({ids})", "name one with --cell")
    raise UserError(f"--cell {cell}", f"there is no generator of this cell in {run}", f"known: {ids}")


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
