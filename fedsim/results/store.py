"""The run folder: the names of its files, and the append-only files of result lines."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import shorten
from typing import IO, Any, Literal, get_type_hints

from pydantic import BaseModel, create_model

from fedsim.errors import RunLost, UserError
from fedsim.files import unread
from fedsim.json_lines import complete_lines, decode, dump, has_words, is_json, load, reasons
from fedsim.results.records import (
    AuditRecord,
    CheckRecord,
    EvaluationRecord,
    MembershipRecord,
    PairRecord,
    ReferenceRecord,
    RoundLine,
    TrainingPair,
    TrainingRecord,
)
from fedsim.words import encodable

Kind = Literal[
    "trainings",
    "evaluations",
    "references",
    "audits",
    "pairs",
    "memberships",
    "checks",
    "rounds",
]
RECORDS: dict[Kind, tuple[type, tuple[str, ...]]] = {
    "trainings": (TrainingRecord, ("training_id", "cell", "error")),
    "evaluations": (EvaluationRecord, ("cell_id", "training_id", "error")),
    "references": (ReferenceRecord, ("reference",)),
    "audits": (AuditRecord, ("audit", "claim")),
    "pairs": (PairRecord, ("audit", "pair")),
    "memberships": (MembershipRecord, ("training_id", "auc")),
    "checks": (CheckRecord, ("algorithm", "source", "unit", "trust", "params", "full", "ended")),
    "rounds": (RoundLine, ("training_id", "round")),
}
"""The record of each kind, and those of its keys that are checked when a line is read.

:meth:`ResultStore.last` keeps the last line for each value of the first key.
"""
HOLDER = "fedsim, process "
"""The beginning of the lock file's text, which the number of the process follows."""
RESTORE = (
    "copy the file from a backup, or run the grid again in a new folder (if the folder is a "
    "package, run `fedsim release` again)"
)
"""The hint where a file of a run folder is damaged."""
KINDS: dict[Kind, type[BaseModel]] = {
    kind: create_model(kind, **{name: get_type_hints(record)[name] for name in names})
    for kind, (record, names) in RECORDS.items()
}
"""The kinds of result lines, each of which has a file, with the model that checks its lines."""


def unreadable(where: str, error: Exception) -> UserError:
    """Return the message for a damaged file of a run folder.

    Args:
        where: The file, with the line if it is known.
        error: The exception that reading it raised.
    """
    return UserError(
        where,
        f"cannot be read ({'; '.join(reasons(error))})",
        RESTORE,
    )


class RunFolder:
    """The names of the files in a run folder.

    Attributes:
        path: The folder, which need not exist.
        results: The file with one result per cell. It is made again from the result lines.
        clients: The file with one line per client of every cell that was evaluated client by
            client. It is made again from the result lines.
        manifest: The file that says what ran, on which data.
        partitions: The file of the label-by-client matrices that the report draws.
        page: The report.
        curves: The folder of the report's figures.
        lock: The file that a process locks while it writes here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results = path / "results.jsonl"
        self.clients = path / "clients.jsonl"
        self.manifest = path / "manifest.json"
        self.partitions = path / "partitions.json"
        self.lock = path / ".lock"
        self.page = path / "report.html"
        self.curves = path / "curves"

    def lines(self, kind: str) -> Path:
        """Return the file of the result lines of one of :data:`KINDS`."""
        return self.path / f"{kind}.jsonl"

    def state(self, training_id: str) -> Path:
        """Return the file of the tensors that a training left."""
        return self.path / "trained" / f"{training_id}.safetensors"

    def has_state(self, training: TrainingRecord) -> bool:
        """Return whether the tensors that a training left are still in the folder."""
        return training["state"] is not None and self.state(training["training_id"]).exists()

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints of running trainings, as an absolute path."""
        return self.path.absolute() / "checkpoints"

    def checkpoint(self, training_id: str) -> Path:
        """Return the checkpoint of a running training.

        The path is absolute, since workers have another working folder.
        """
        return self.checkpoints / f"{training_id}.safetensors"

    def log(self, cell_id: str) -> Path:
        """Return the log of a cell."""
        return self.path / "logs" / f"{cell_id}.log"

    def check_no_file(self) -> None:
        """Check that the path of the folder is not a file.

        Raises:
            UserError: It is a file.
        """
        if os.path.lexists(self.path) and not os.path.isdir(self.path):
            raise UserError(
                str(self.path),
                "is a file, and results need a folder",
                "give a new folder, or that of an earlier run",
            )

    def check(self) -> None:
        """Check that a bench has run here.

        Raises:
            UserError: There are no results, or the manifest is missing.
        """
        if not self.lines("trainings").exists():
            raise UserError(
                str(self.path),
                "there are no results here",
                "give a run folder, such as runs/quickstart",
            )
        if not self.manifest.exists():
            raise UserError(
                str(self.path),
                "has results, but its manifest.json is missing",
                RESTORE,
            )

    def check_own(self) -> None:
        """Check that the folder has no foreign files, which a bench could replace or misread.

        A folder is a bench's own if it is new or empty, if its manifest is one that fedsim wrote,
        or if it has only files that a bench leaves before its first manifest.

        Raises:
            UserError: The folder has foreign files.
        """
        if not os.path.isdir(self.path) or self._has_manifest():
            return
        others = sorted(path.name for path in self.path.iterdir() if not self._precedes(path))
        if others:
            raise UserError(
                str(self.path),
                "is not empty and has no manifest of a fedsim run (it holds "
                f"{shorten(', '.join(others), 70, placeholder=' …')})",
                "give a new or empty folder with `out`",
            )

    def _has_manifest(self) -> bool:
        """Return whether there is a manifest with fedsim's version, which every fedsim writes."""
        try:
            return "fedsim" in load(self.manifest.read_bytes())["versions"]
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def _precedes(self, path: Path) -> bool:
        """Return whether fedsim may leave this file in a folder that has no manifest yet.

        These are the lock, an unfinished manifest, and the lines of an audit.
        """
        if path == self.lock:
            if not path.is_file():
                return False
            text = path.read_text(errors="replace")
            return not text or text.startswith(HOLDER)
        if path == self.lines("pairs"):
            return True
        return path.name.startswith(f".{self.manifest.name}.") and path.suffix == ".part"


class ResultStore:
    """The append-only files of one run folder, with one line for every result of a job.

    Reading needs no lock. Every append takes the folder's lock unless ``lock()`` already holds it,
    so two fedsim processes never write to one folder at a time.

    Args:
        folder: The run folder, which the first append or lock makes.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = RunFolder(Path(folder))
        self._held: IO[str] | None = None

    @contextmanager
    def lock(self) -> Iterator[ResultStore]:
        """Hold the run folder alone until the block ends or the process dies.

        Raises:
            UserError: The folder cannot be written, or another process holds it.
            RunLost: A file of the folder cannot be written within the block.
        """
        if self._held is not None:
            yield self
            return
        with self._lock_file() as file:
            self._take(file)
            self._held = file
            try:
                file.truncate(0)
                file.write(f"{HOLDER}{os.getpid()},")
                file.flush()
                yield self
            except OSError as error:
                # Errors of a network are no errors of a file.
                if isinstance(error, ConnectionError | TimeoutError):
                    raise
                # An atomic replace has two names; the second is that of the file to replace.
                where = str(error.filename2 or error.filename or self.folder.path)
                raise RunLost(
                    where,
                    f"cannot be written ({unread(error)})",
                    "finished results are kept, and the same command continues",
                ) from error
            finally:
                self._held = None

    def _lock_file(self) -> IO[str]:
        """Open the lock file; make it, and the folder, if they do not exist.

        Raises:
            UserError: The folder cannot be written.
        """
        self.folder.check_no_file()
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            return self.folder.lock.open("a+")
        except OSError as error:
            raise UserError(
                str(self.folder.path),
                f"cannot be written ({unread(error)})",
                "make it writable, or give another one",
            ) from error

    def check_free(self) -> None:
        """Check that a bench could use the folder; nothing is made.

        Raises:
            UserError: The path is not UTF-8, another fedsim holds the folder, or it has foreign
                files.
        """
        path = str(self.folder.path.absolute())
        if encodable(path) != path:
            raise UserError(
                ascii(path),
                "is not a path in UTF-8, which Ray and JSON need",
                "rename it",
            )
        if self._held is None and os.path.isfile(self.folder.lock):
            with suppress(OSError), self.folder.lock.open("r+") as file:
                self._take(file)
        self.folder.check_own()

    def _take(self, file: IO[str]) -> None:
        """Lock the lock file until it is closed.

        Raises:
            UserError: Another process holds it.
        """
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another fedsim"
            raise UserError(
                str(self.folder.path),
                f"{holder} is running in this folder",
                "wait until it ends, or stop it",
            ) from error

    def append(self, kind: Kind, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append result lines of one kind, all or none; a line is never changed again.

        They are on disk when this returns.

        Raises:
            RunLost: The file cannot be written.
        """
        path = self.folder.lines(kind)
        text = "".join(f"{dump(line)}\n" for line in lines)
        if not text:
            return
        rest = memoryview(text.encode(errors="replace"))
        with self.lock():
            _mend(path)
            with path.open("ab", buffering=0) as file:
                before = file.tell()
                try:
                    # A disk that is almost full takes only a part at a time.
                    while rest:
                        rest = rest[file.write(rest) :]
                    os.fsync(file.fileno())
                except OSError:
                    with suppress(OSError):
                        file.truncate(before)
                    raise

    def lines(self, kind: Kind) -> Iterator[Any]:
        """Yield the lines of one kind in the order in which they were written.

        A line is a record of its kind (:mod:`fedsim.results.records`); the caller names its type.

        The words "inf", "-inf" and "nan", which stand for numbers in the file, become numbers.

        Raises:
            UserError: A line is damaged.
        """
        path = self.folder.lines(kind)
        model = KINDS[kind]
        for number, line in complete_lines(path):
            try:
                values = load(line)
                model.model_validate(values, strict=True)
            except ValueError as error:
                raise unreadable(f"{path}:{number}", error) from error
            if has_words(line):
                values = decode(values)
            yield values

    def last(self, kind: Kind) -> dict[str, Any]:
        """Return the last line of every key; the caller names the type of the lines.

        A training that failed never replaces one that succeeded.
        """
        last_lines: dict[str, Any] = {}
        _, (key_name, *_) = RECORDS[kind]
        for line in self.lines(kind):
            key = line[key_name]
            earlier = last_lines.get(key, line)
            if kind == "trainings" and line["error"] is not None and earlier["error"] is None:
                continue
            last_lines[key] = line
        return last_lines

    def audit_pairs(self, key: str) -> list[TrainingPair]:
        """Return the pairs of trainings that an audit has run so far, by number.

        Args:
            key: The key of the audit. The returned pairs do not have it.
        """
        pairs = {}
        for line in self.lines("pairs"):
            if line.pop("audit") == key:
                pairs[line["pair"]] = line
        return [pairs[number] for number in sorted(pairs)]

    def rounds(self) -> dict[str, list[RoundLine]]:
        """Return the round records of each training, in order of the round.

        A training that ran again replaces its records from the first of its new rounds on.
        """
        by_training: dict[str, list[RoundLine]] = {}
        for record in self.lines("rounds"):
            records = by_training.setdefault(record["training_id"], [])
            while records and records[-1]["round"] >= record["round"]:
                records.pop()
            records.append(record)
        return by_training

    def log(self, cell_id: str, lines: Iterable[str]) -> None:
        """Add lines to a cell's log.

        Raises:
            RunLost: The log cannot be written.
        """
        path = self.folder.log(cell_id)
        with self.lock():
            path.parent.mkdir(exist_ok=True)
            with path.open(
                "a",
                encoding="utf-8",
                errors="backslashreplace",
            ) as file:
                file.writelines(f"{line}\n" for line in lines)


def _mend(path: Path) -> None:
    """Cut off an incomplete last line; a complete one that lacks only its newline gets it."""
    with path.open("a+b") as file:
        if not file.tell():
            return
        file.seek(-1, os.SEEK_END)
        if file.read() == b"\n":
            return
        file.seek(0)
        content = file.read()
        start = content.rfind(b"\n") + 1
        if is_json(content[start:]):
            file.write(b"\n")
        else:
            file.truncate(start)
