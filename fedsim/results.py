"""What a bench leaves behind: rows, round records, and the append-only files that hold them."""

from __future__ import annotations

import fcntl
import json
import math
import os
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, get_args

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from scipy.stats import t as student_t

from fedsim.errors import UserError
from fedsim.privacy.plan import Claim

UNDRAWN = ("failed", "overspent", "unaccounted")
"""The statuses of rows that are in no mean and no picture."""
RESULTS, ROUNDS, SUMMARY, LOCK = "results.jsonl", "rounds.jsonl", "summary.csv", ".lock"
_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


class RowError(BaseModel):
    """Why a cell failed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    message: str
    traceback: str


class Row(BaseModel):
    """The result of one cell. What a failed cell lacks is None; so is every epsilon of a method without DP.

    ``client_balanced_accuracy`` is that of the clients' own generators, where the grid asks for it (:func:`fedsim.evaluate.score_clients`).
    ``personal_*`` are the :class:`fedsim.evaluate.PersonalScores`, where the grid asks for them.
    ``status`` is ``unaccounted`` where the ledger is not what the plan planned: nothing is known of the epsilon, and ``error`` says why.
    ``epsilon_spent`` is under add-or-remove-one, ``epsilon_spent_replace_one`` under replace-one at the same delta
    (:func:`fedsim.privacy.accountant.replace_one_epsilon`). ``uplink_bytes`` counts what all clients sent in all rounds, ``seconds`` is the
    cell's wall time, ``sigma`` the noise multiplier, ``steps`` the number of noisy steps, ``sample_rate`` their Poisson rate. ``source`` is
    the hash of the code that ran (:mod:`fedsim.source_hash`); a row without one is older than this field, and so than any row with one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell_id: str
    source: str | None = None
    status: Literal["ok", "failed", "overspent", "unaccounted"]
    error: RowError | None = None
    algorithm: str
    label: str
    params: dict[str, Any]
    dataset: str
    dataset_hash: str | None = None
    scheme: str | None = None
    alpha: float | None = None
    clients: int | None = None
    partition_hash: str | None = None
    train_rows: int | None = None
    seed: int | None = None
    epsilon_target: float | None = None
    epsilon_spent: float | None = None
    epsilon_spent_replace_one: float | None = None
    delta: float | None = None
    unit: Literal["example", "client"] | None = None
    trust: Literal["aggregate", "silo"] | None = None
    scope: str | None = None
    claim: Claim | None = None
    accountant: str | None = None
    noise: Literal["seeded", "secret"] | None = None
    sigma: float | None = None
    sample_rate: float | None = None
    steps: int | None = None
    clip: float | None = None
    accuracy: float | None = None
    balanced_accuracy: float | None = None
    macro_f1: float | None = None
    client_balanced_accuracy: float | None = None
    personal_accuracy: float | None = None
    personal_balanced_accuracy: float | None = None
    personal_weight: float | None = None
    ceiling_balanced_accuracy: float | None = None
    local_only_balanced_accuracy: float | None = None
    chance: float | None = None
    uplink_bytes: int | None = None
    seconds: float | None = None
    versions: dict[str, str] = {}

    @model_validator(mode="after")
    def _status_fits(self) -> Row:
        if (self.status in ("failed", "unaccounted")) != (self.error is not None):
            raise ValueError("a failed or unaccounted row has an error, and no other row has one")
        if self.status != "failed" and None in (self.accuracy, self.balanced_accuracy, self.macro_f1):
            raise ValueError(f"a row with status {self.status} has accuracy, balanced_accuracy and macro_f1")
        target, spent = self.epsilon_target, self.epsilon_spent
        if self.status == "ok" and target is not None and spent is not None and spent > target * (1 + 1e-6):
            raise ValueError(f"epsilon {spent} was spent and {target} allowed: the status is 'overspent', not 'ok'")
        return self

    def to_json(self) -> str:
        """The row as one line of JSON, without the newline; infinity is the string "inf"."""
        return _dump(self.model_dump())

    @classmethod
    def from_json(cls, line: str | bytes) -> Row:
        """The row that ``to_json`` wrote.

        Raises:
            ValueError: the line is not JSON, or not a row (pydantic's ValidationError is a ValueError).
        """
        fields = json.loads(line)
        if isinstance(fields, dict) and "params" in fields:
            fields["params"] = _decode(fields["params"])
        return cls.model_validate(fields)


class ResultStore:
    """The append-only files of one run folder.

    Reading needs no lock. Every append takes the folder's lock unless ``lock()`` already holds it, so two fedsim processes
    never write to one folder at a time.

    Args:
        folder: the run folder; made by the first append or lock.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._held = False
        self._writing = threading.Lock()

    @contextmanager
    def lock(self) -> Iterator[ResultStore]:
        """Hold the run folder alone; the lock goes when the block ends or the process dies.

        Raises:
            UserError: another fedsim holds it.
        """
        if self._held:
            yield self
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read().strip() or "another fedsim"
                raise UserError(str(self.folder), f"{holder} is running in this folder", "wait for it or stop it") from error
            file.truncate(0)
            file.write(f"fedsim, process {os.getpid()},")
            file.flush()
            self._held = True
            try:
                yield self
            finally:
                self._held = False

    def append(self, row: Row) -> None:
        """Add a row: one write, on disk when this returns.

        Raises:
            UserError: another fedsim holds the folder.
        """
        self._append(RESULTS, [row.to_json()])

    def append_rounds(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add round records, each with ``cell_id``, ``round`` and diagnostics (numbers, arrays or lists), in one write.

        Raises:
            UserError: another fedsim holds the folder.
            ValueError: a record has no ``cell_id`` or ``round``.
        """
        lines = []
        for record in records:
            if "cell_id" not in record or "round" not in record:
                raise ValueError(f"a round record has cell_id and round, not only {sorted(record)}")
            lines.append(_dump(record))
        if lines:
            self._append(ROUNDS, lines)

    def rows(self) -> list[Row]:
        """The last row of every cell, in the order in which those rows were written.

        Raises:
            UserError: a complete line of the file is not a row.
        """
        latest: dict[str, Row] = {}
        for number, line in self._lines(RESULTS):
            try:
                row = Row.from_json(line)
            except ValueError as error:
                raise self._broken(RESULTS, number, error) from error
            latest.pop(row.cell_id, None)
            latest[row.cell_id] = row
        return list(latest.values())

    def rounds(self) -> list[dict[str, Any]]:
        """The round records by cell, in order of the round; a cell that ran again replaces its records from that round on.

        Raises:
            UserError: a complete line of the file is not a round record.
        """
        by_cell: dict[str, list[dict[str, Any]]] = {}
        for number, line in self._lines(ROUNDS):
            try:
                raw = json.loads(line)
                record = {key: raw[key] if key == "cell_id" else _decode(value) for key, value in raw.items()}
                kept = by_cell.setdefault(record["cell_id"], [])
                while kept and kept[-1]["round"] >= record["round"]:
                    kept.pop()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise self._broken(ROUNDS, number, error) from error
            kept.append(record)
        return [record for records in by_cell.values() for record in records]

    def finished(self) -> set[str]:
        """The ids of cells that need not run again: their last row says anything but ``failed``."""
        return {row.cell_id for row in self.rows() if row.status != "failed"}

    def failed(self) -> set[str]:
        """The ids of cells whose last row is a failure."""
        return {row.cell_id for row in self.rows() if row.status == "failed"}

    def _append(self, name: str, lines: Sequence[str]) -> None:
        with self._writing, self.lock():
            path = self.folder / name
            _mend(path)
            with path.open("ab", buffering=0) as file:
                file.write("".join(f"{line}\n" for line in lines).encode())
                os.fsync(file.fileno())

    def _lines(self, name: str) -> Iterator[tuple[int, bytes]]:
        """Line numbers and complete lines of a file."""
        path = self.folder / name
        if not path.exists():
            return
        lines = path.read_bytes().split(b"\n")
        tail = lines.pop()
        yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())
        if _is_json(tail):
            yield len(lines) + 1, tail

    def _broken(self, name: str, number: int, error: Exception) -> UserError:
        what = "; ".join(_reasons(error))
        return UserError(f"{self.folder / name}:{number}", f"this line cannot be read ({what})", "remove the line; its cell runs again")


def load_results(folder: Path | str) -> pd.DataFrame:
    """The rows of a run folder as a frame: a column for every field of ``Row``, numbers as float64 (missing: NaN).

    Rows of older code are left out (:func:`of_newest_source`).

    Raises:
        UserError: the folder has no results, or a line is not a row.
    """
    store = ResultStore(folder)
    if not (store.folder / RESULTS).exists():
        raise UserError(str(folder), f"there is no {RESULTS} here", "give a run folder, such as runs/quickstart")
    frame = pd.DataFrame([row.model_dump() for row in of_newest_source(store.rows())], columns=list(Row.model_fields))
    numbers = [name for name, field in Row.model_fields.items() if field.annotation in (float | None, int | None)]
    return frame.astype(dict.fromkeys(numbers, "float64"))


def of_newest_source(rows: Sequence[Row]) -> list[Row]:
    """The rows without those of older code: an algorithm's rows are kept if they have the source of the one that was written last."""
    newest = {row.algorithm: row.source for row in rows}
    return [row for row in rows if row.source == newest[row.algorithm]]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with the half-width of its Student-t 95 % confidence interval (None for a single seed)."""

    mean: float
    half_width: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """The interval of at least one value: ``t_{0.975, n-1} * s / sqrt(n)`` around the mean."""
        n = len(values)
        if n == 1:
            return cls(float(values[0]), None)
        return cls(fmean(values), float(student_t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n))


@dataclass(frozen=True)
class Group:
    """Rows that differ in their seed only, with status ok; and how many others of the group there are, by status.

    ``rows`` may be empty. Rows of different parameters are never in one group, even under one label.
    """

    dataset: str
    scheme: str | None
    algorithm: str
    label: str
    alpha: float | None
    clients: int | None
    epsilon_target: float | None
    delta: float | None
    unit: str | None
    trust: str | None
    scope: str | None
    claim: str | None
    params: Mapping[str, Any]
    rows: tuple[Row, ...]
    failed: int
    overspent: int
    unaccounted: int

    def interval(self, measure: str) -> Interval | None:
        """Mean and confidence interval of a row's field over the seeds; None where no row has it."""
        values = self._values(measure)
        return Interval.of(values) if values else None

    def mean(self, measure: str) -> float | None:
        """Mean of a row's field over the seeds; None where no row has it."""
        values = self._values(measure)
        return fmean(values) if values else None

    def largest(self, measure: str) -> float | None:
        """Largest value of a row's field over the seeds; None where no row has it."""
        return max(self._values(measure), default=None)

    def _values(self, measure: str) -> list[float]:
        return [value for row in self.rows if (value := getattr(row, measure)) is not None]


_SETTING = ("dataset", "scheme", "algorithm", "label", "alpha", "clients", "epsilon_target", "delta", "unit", "trust")


def group_seeds(rows: Iterable[Row]) -> list[Group]:
    """The rows as groups over seeds, by data set, alpha, clients, label, epsilon; data sets and labels as they first appear.

    A label that stands for several parameter sets gets the differing parameters appended, so that no two groups of
    different parameters share a name.
    """
    rows = _distinct_labels(list(rows))
    order = {name: position for position, name in enumerate(dict.fromkeys(name for row in rows for name in (row.dataset, row.label)))}
    grouped: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (*(getattr(row, name) for name in _SETTING), row.dataset_hash, _dump(row.params))
        grouped.setdefault(key, []).append(row)
    return sorted(
        (_group(members) for members in grouped.values()),
        key=lambda g: (
            order[g.dataset],
            _last(g.alpha),
            g.clients or 0,
            g.scheme or "",
            order[g.label],
            _last(g.epsilon_target),
        ),
    )


def _group(members: list[Row]) -> Group:
    # A seed counts once; a later row of the same seed is the newer result.
    averaged = {row.seed: row for row in members if row.status == "ok"}
    scopes = dict.fromkeys(row.scope for row in members if row.scope is not None)
    claims = {row.claim for row in members if row.claim is not None}
    statuses = Counter(row.status for row in members)
    return Group(
        **{name: getattr(members[0], name) for name in _SETTING},
        scope=" and ".join(scopes) or None,
        # A mean is as well founded as the weakest of its rows.
        claim=weakest(claims),
        params=members[0].params,
        rows=tuple(sorted(averaged.values(), key=lambda row: _last(row.seed))),
        failed=statuses["failed"],
        overspent=statuses["overspent"],
        unaccounted=statuses["unaccounted"],
    )


def weakest(claims: Collection[str | None]) -> str | None:
    """The claim that is worth the least; None where there is none."""
    return next((claim for claim in reversed(get_args(Claim)) if claim in claims), None)


def _distinct_labels(rows: list[Row]) -> list[Row]:
    """The rows, with what differs between settings that share a label appended to it."""
    by_label: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_label.setdefault(row.label, []).append(_settings(row))
    differing = {label: _differing(settings) for label, settings in by_label.items()}

    def named(row: Row) -> Row:
        told = ", ".join(f"{name}={_settings(row).get(name)}" for name in differing[row.label])
        return row.model_copy(update={"label": f"{row.label} ({told})"}) if told else row

    return [named(row) for row in rows]


def _settings(row: Row) -> dict[str, Any]:
    return {"algorithm": row.algorithm, "delta": row.delta, "unit": row.unit, "trust": row.trust, **row.params}


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for each in settings for name in each)
    values = {name: {_dump([each[name]]) for each in settings if each.get(name) is not None} for name in names}
    return [name for name in names if len(values[name]) > 1]


def write_summary(rows: Iterable[Row], path: Path) -> None:
    """Write ``summary.csv``: a line for every group of seeds, replacing the file at once.

    Columns: the setting, ``seeds`` (rows averaged), ``failed``, ``overspent`` and ``unaccounted`` (rows left out), ``_mean`` and ``_ci95``
    half-width of each measure, the largest ``epsilon_spent`` and ``epsilon_spent_replace_one``, and the means of the references and
    seconds. Infinity is ``inf``; the half-width of a single seed is empty.
    """
    frame = pd.DataFrame([_summary_line(group) for group in group_seeds(rows)], columns=_SUMMARY_COLUMNS)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    frame.to_csv(partial, index=False)
    partial.replace(path)


_MEASURES = ("accuracy", "balanced_accuracy", "macro_f1", "client_balanced_accuracy", "personal_accuracy", "personal_balanced_accuracy")
_MEANS = ("ceiling_balanced_accuracy", "local_only_balanced_accuracy", "chance", "seconds")
_SUMMARY_COLUMNS = [
    *(*_SETTING, "scope", "claim", "seeds", *UNDRAWN),
    *(f"{measure}_{part}" for measure in _MEASURES for part in ("mean", "ci95")),
    *("epsilon_spent_max", "epsilon_spent_replace_one_max", *_MEANS),
]


def _summary_line(group: Group) -> dict[str, Any]:
    line = {name: getattr(group, name) for name in (*_SETTING, "scope", "claim", *UNDRAWN)}
    line["seeds"] = len(group.rows)
    for measure in _MEASURES:
        interval = group.interval(measure)
        line[f"{measure}_mean"] = interval.mean if interval else None
        line[f"{measure}_ci95"] = interval.half_width if interval else None
    for measure in ("epsilon_spent", "epsilon_spent_replace_one"):
        line[f"{measure}_max"] = group.largest(measure)
    return line | {name: group.mean(name) for name in _MEANS}


def _last(value: float | None) -> float:
    """A sort key that puts a missing number behind all others, infinity included."""
    return math.inf if value is None else min(value, 1e300)


def _mend(path: Path) -> None:
    """Cut a torn last line off; a complete one that lacks only its newline gets it."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() == b"\n":
            return
        file.seek(0)
        content = file.read()
        start = content.rfind(b"\n") + 1
        if _is_json(content[start:]):
            file.write(b"\n")
        else:
            file.truncate(start)


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _dump(value: Any) -> str:
    return json.dumps(_encode(value), ensure_ascii=False, allow_nan=False)


def _encode(value: Any) -> Any:
    """Plain JSON values: not-finite numbers as "inf", "-inf", "nan"; arrays and tensors as lists; paths as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return _encode(value.tolist()) if hasattr(value, "tolist") else value


def _decode(value: Any) -> Any:
    if isinstance(value, str):
        return _NOT_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: _decode(item) for key, item in value.items()}
    return [_decode(item) for item in value] if isinstance(value, list) else value


def _reasons(error: Exception) -> list[str]:
    if isinstance(error, ValidationError):
        return [f"{'.'.join(map(str, item['loc']))}: {item['msg']}".lstrip(": ") for item in error.errors()][:3]
    return [str(error)]
