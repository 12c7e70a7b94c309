"""A run's rows and rounds for other tools' experiment trackers: a run of theirs for every cell; nothing leaves this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedsim.errors import UserError, not_installed
from fedsim.evaluation.measures import MEASURES
from fedsim.results.folder import RunFolder
from fedsim.results.grid_rows import read_results
from fedsim.results.groups import SETTING, grouped
from fedsim.results.rows import Row
from fedsim.words import json_number, spelled

Tracker = Literal["mlflow", "tensorboard", "wandb"]
"""The tools."""
NOT_PRIVATE = "scores and diagnostics are exact functions of the real data: the export stays where the run folder stays"
UNMEASURED = ("round", "rounds", "sampled", "noise")
"""Numbers of a round's record that measure nothing."""
_SETTINGS = (*SETTING, "scope", "claim", "noise", "seed")
_NUMBERS = (
    *("epsilon_spent", "sigma", "sample_rate", "steps", "ceiling_balanced_accuracy", "local_only_balanced_accuracy", "chance"),
    *("uplink_bytes", "downlink_bytes", "parameters", "seconds", "train_seconds", "judge_seconds", "audit_epsilon_lower"),
)


@dataclass(frozen=True)
class TrackedCell:
    """A cell as trackers have it.

    Attributes:
        name: its setting in words.
        settings: what it was run with, parameters as ``params.NAME``.
        metrics: scores, budget and costs.
        rounds: by round the finite numbers of its diagnostics.
        tags: ids, status, versions and the error's message.
    """

    name: str
    settings: dict[str, Any]
    metrics: dict[str, float]
    rounds: Sequence[tuple[int, dict[str, float]]]
    tags: dict[str, str]


def export(folder: Path | str, to: Tracker, out: Path | str | None = None) -> tuple[Path, int]:
    """Write the cells of a run's grid into the files of a tracker.

    Args:
        folder: of the run.
        to: the tool, which must be installed.
        out: a new or empty folder; default: ``tracking/TOOL`` in the run folder.

    Returns:
        The folder, and how many cells.

    Raises:
        UserError: there are no results, the tool is missing, or the folder is not empty.
    """
    run = RunFolder(Path(folder))
    run.check()
    target = run.path / "tracking" / to if out is None else Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--out {target}", "is there and not empty", "remove it, or give a new folder")
    try:
        write = _WRITERS[to]()
    except ImportError as error:
        raise not_installed("--to", to, to) from error
    cells = list(tracked(run.path))
    target.mkdir(parents=True, exist_ok=True)
    write(cells, target.resolve(), run.path.resolve().name)
    return target, len(cells)


def tracked(folder: Path) -> Iterator[TrackedCell]:
    """The cells of a run's grid."""
    results = read_results(folder)
    rounds = grouped(results.rounds(), lambda record: record["cell_id"])
    for row in results.rows:
        yield _cell(row, rounds.get(row.cell_id, ()))


def _cell(row: Row, rounds: Sequence[Mapping[str, Any]]) -> TrackedCell:
    settings = {name: json_number(value) for name in _SETTINGS if (value := getattr(row, name)) is not None}
    numbers = {name: value for name in (*MEASURES, *_NUMBERS) if (value := row.value(name)) is not None}
    tags = {"cell_id": row.cell_id, "status": row.status, "source": row.source, "judged": row.judged}
    tags |= {f"version.{name}": version for name, version in row.versions.items()} | {"error": row.error.message if row.error else None}
    return TrackedCell(
        row.setting,
        settings | {f"params.{name}": spelled(value) for name, value in row.params.items()},
        _finite(numbers),
        [(record["round"], _finite(record, left_out=UNMEASURED)) for record in rounds],
        {name: str(value) for name, value in tags.items() if value},
    )


def _finite(values: Mapping[str, Any], left_out: Sequence[str] = ()) -> dict[str, float]:
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value) and name not in left_out}


Write = Callable[[Sequence[TrackedCell], Path, str], None]
"""Writes cells into a folder, as a project of some name."""


def _mlflow() -> Write:
    import sqlalchemy  # noqa: F401  (mlflow-skinny lacks it, and with it every database)
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    def write(cells: Sequence[TrackedCell], out: Path, project: str) -> None:
        client = MlflowClient(tracking_uri=(address := f"sqlite:///{out / 'mlflow.db'}"), registry_uri=address)
        experiment = client.create_experiment(project, artifact_location=(out / "artifacts").as_uri())
        for cell in cells:
            run = client.create_run(experiment, run_name=cell.name, tags=cell.tags).info.run_id
            params = [Param(name, str(value)[:MOST_OF_A_PARAM]) for name, value in cell.settings.items()]
            metrics = [Metric(name, value, 0, 0) for name, value in cell.metrics.items()]
            metrics += [Metric(f"round/{name}", value, 0, at) for at, values in cell.rounds for name, value in values.items()]
            client.log_batch(run, params=params, tags=[RunTag("mlflow.note.content", NOT_PRIVATE)])
            for start in range(0, len(metrics), MOST_OF_A_BATCH):
                client.log_batch(run, metrics=metrics[start : start + MOST_OF_A_BATCH])
            client.set_terminated(run, "FINISHED" if cell.tags["status"] == "ok" else "FAILED")

    return write


MOST_OF_A_PARAM, MOST_OF_A_BATCH = 6000, 1000
"""Characters and metrics that MLflow takes at once."""


def _tensorboard() -> Write:
    from torch.utils.tensorboard import SummaryWriter

    def write(cells: Sequence[TrackedCell], out: Path, project: str) -> None:
        for cell in cells:
            with SummaryWriter(str(out / f"{cell.name.replace('/', '∕')} {cell.tags['cell_id'][:6]}")) as writer:
                for at, values in cell.rounds:
                    for name, value in values.items():
                        writer.add_scalar(f"round/{name}", value, at)
                writer.add_text("cell", "  \n".join(f"{name}: {value}" for name, value in {**cell.settings, **cell.tags}.items()))
                writer.add_hparams(cell.settings, {f"score/{name}": value for name, value in cell.metrics.items()}, run_name=".")

    return write


def _wandb() -> Write:
    import wandb

    def write(cells: Sequence[TrackedCell], out: Path, project: str) -> None:
        for cell in cells:
            run = wandb.init(
                project=project,
                name=cell.name,
                config={**cell.settings, "tags": cell.tags},
                notes=NOT_PRIVATE,
                dir=str(out),
                mode="offline",
                reinit="finish_previous",
            )
            for at, values in cell.rounds:
                run.log({f"round/{name}": value for name, value in values.items()}, step=at)
            run.summary.update(cell.metrics)
            run.finish(exit_code=0 if cell.tags["status"] == "ok" else 1)

    return write


_WRITERS: dict[Tracker, Callable[[], Write]] = {"mlflow": _mlflow, "tensorboard": _tensorboard, "wandb": _wandb}
