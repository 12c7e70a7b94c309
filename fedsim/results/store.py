"""The append-only files of a run folder."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel

from fedsim.errors import RunLost, UserError
from fedsim.json_lines import complete_lines, decode, dump, is_json, load, reasons
from fedsim.regular import unread, without_waiting
from fedsim.results.folder import RunFolder
from fedsim.results.rows import Row
from fedsim.words import is_encodable


class ResultStore:
    """The append-only files of one run folder.

    Reading needs no lock. Every append takes the folder's lock unless ``lock()`` already holds it, so two fedsim processes
    never write to one folder at a time.

    Args:
        folder: the run folder; made by the first append or lock.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = RunFolder(Path(folder))
        self._held: IO[str] | None = None
        self._writing = threading.Lock()

    @contextmanager
    def lock(self) -> Iterator[ResultStore]:
        """Hold the run folder alone; the lock goes when the block ends or the process dies.

        Raises:
            UserError: another fedsim holds it.
        """
        if self._held is not None:
            yield self
            return
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            file = self.folder.lock.open("a+")
        except OSError as error:
            cannot = "be written" if self.folder.results.exists() else "be made a run folder"
            raise UserError(str(self.folder.path), f"cannot {cannot} ({unread(error)})", "make it writable, or give another one") from error
        with file:
            self._take(file)
            self._held = file
            try:
                file.truncate(0)
                file.write(f"fedsim, process {os.getpid()},")
                file.flush()
                yield self
            except OSError as error:
                if isinstance(error, ConnectionError | TimeoutError):  # not a file's
                    raise
                raise self._lost(error) from error
            finally:
                self._held = None

    def check_free(self) -> None:
        """Check, without making anything, that the folder's path can be told and no other fedsim holds it.

        Raises:
            UserError: it is not so.
        """
        if not is_encodable(str(self.folder.path.absolute())):
            raise UserError(ascii(str(self.folder.path.absolute())), "is no path in UTF-8, which Ray and JSON need", "rename it")
        if self._held is None and os.path.isfile(self.folder.lock):
            with suppress(PermissionError), self.folder.lock.open() as file:
                self._take(file)

    def _take(self, file: IO[str]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another fedsim"
            raise UserError(str(self.folder.path), f"{holder} is running in this folder", "wait for it or stop it") from error

    def _lost(self, error: OSError) -> RunLost:
        """What the file system did to a run under way."""
        where = str(error.filename2 or error.filename or self.folder.path)  # of a replaced file its own name, not the new one's
        return RunLost(where, f"cannot be written ({unread(error)})", "what is finished is kept, the same command goes on")

    def _check_held(self) -> None:
        """Check that the folder is still the one that was locked.

        Raises:
            RunLost: it was moved or removed.
        """
        assert self._held is not None
        held = os.fstat(self._held.fileno())
        try:
            found = os.stat(self.folder.lock)
        except OSError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino):
            what, right = "was moved or removed while fedsim ran in it", "the same command runs what the folder lacks"
            raise RunLost(str(self.folder.path), what, right)

    def append(self, row: Row) -> None:
        """Add a row: one write, on disk when this returns.

        Raises:
            UserError: another fedsim holds the folder.
        """
        self._append(self.folder.results, [row.to_json()])

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
            lines.append(dump(record))
        if lines:
            self._append(self.folder.rounds, lines)

    def append_clients(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add what is told of the clients of one cell, each line with ``cell_id`` and ``client``, in one write.

        Raises:
            UserError: another fedsim holds the folder.
        """
        if written := [dump(line) for line in lines]:
            self._append(self.folder.clients, written)

    def append_audits(self, key: str, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add what an audit saw, in one write.

        Args:
            key: of the audit; whoever asks for it again goes on from here.
            lines: each with ``pair``, the number of what it tells of.

        Raises:
            UserError: another fedsim holds the folder.
        """
        if written := [dump({"audit": key, **line}) for line in lines]:
            self._append(self.folder.audits, written)

    def audits(self, key: str) -> list[dict[str, Any]]:
        """What an audit saw so far, by number, without its key.

        Raises:
            UserError: a complete line of the file is not what an audit wrote.
        """
        found: dict[int, dict[str, Any]] = {}
        for number, line in complete_lines(self.folder.audits):
            try:
                told = decode(load(line))
                if told.pop("audit") == key:
                    found[told["pair"]] = told
            except _NO_RECORD as error:
                raise _broken(self.folder.audits, number, error, "its pair runs again") from error
        return [found[pair] for pair in sorted(found)]

    def clients(self) -> list[dict[str, Any]]:
        """The last line of every cell and client, by cell and client.

        Raises:
            UserError: a complete line of the file is none of these.
        """
        latest: dict[str, dict[int, dict[str, Any]]] = {}
        for told in self._client_lines():
            latest.setdefault(told["cell_id"], {})[told["client"]] = told
        return [own[client] for own in latest.values() for client in sorted(own)]

    def _client_lines(self) -> Iterator[dict[str, Any]]:
        """The lines of clients, as they are in the file."""
        for number, line in complete_lines(self.folder.clients):
            try:
                told = load(line)
                _ClientLine.model_validate(told, strict=True)
            except _NO_RECORD as error:
                raise _broken(self.folder.clients, number, error) from error
            yield told

    def rows(self) -> list[Row]:
        """The last row of every cell, in the order in which those rows were written.

        Raises:
            UserError: a complete line of the file is not a row.
        """
        latest: dict[str, Row] = {}
        for number, line in complete_lines(self.folder.results):
            try:
                row = Row.from_json(line)
            except ValueError as error:
                raise _broken(self.folder.results, number, error, "its cell runs again") from error
            latest.pop(row.cell_id, None)
            latest[row.cell_id] = row
        return list(latest.values())

    def rounds(self) -> list[dict[str, Any]]:
        """The round records by cell, in order of the round; a cell that ran again replaces its records from that round on.

        Raises:
            UserError: a complete line of the file is not a round record.
        """
        by_cell: dict[str, list[dict[str, Any]]] = {}
        for record in self._round_records():
            kept = by_cell.setdefault(record["cell_id"], [])
            while kept and kept[-1]["round"] >= record["round"]:
                kept.pop()
            kept.append(record)
        return [record for records in by_cell.values() for record in records]

    def _round_records(self) -> Iterator[dict[str, Any]]:
        """The round records, as they are in the file."""
        for number, line in complete_lines(self.folder.rounds):
            try:
                record = load(line)
                if any(word in line for word in _WORDS):
                    record = {key: value if key == "cell_id" else decode(value) for key, value in record.items()}
                _RoundLine.model_validate(record, strict=True)
            except _NO_RECORD as error:
                raise _broken(self.folder.rounds, number, error) from error
            yield record

    def check_beside(self) -> None:
        """Read what stands beside the rows, line by line, so that a damaged line is told before anything runs.

        Raises:
            UserError: a line cannot be read.
        """
        for _ in chain(self._round_records(), self._client_lines()):
            pass

    def finished(self) -> set[str]:
        """The ids of cells that need not run again: their last row says anything but ``failed``."""
        return {row.cell_id for row in self.rows() if row.status != "failed"}

    def failed(self) -> set[str]:
        """The ids of cells whose last row is a failure."""
        return {row.cell_id for row in self.rows() if row.status == "failed"}

    def log(self, cell_id: str, lines: Iterable[str]) -> None:
        """Add lines to a cell's log.

        Raises:
            UserError: another fedsim holds the folder.
            RunLost: it cannot be written.
        """
        path = self.folder.log(cell_id)
        with self._writing, self.lock():
            self._check_held()
            path.parent.mkdir(exist_ok=True)
            with open(path, "a", encoding="utf-8", errors="backslashreplace", opener=without_waiting) as file:
                file.writelines(f"{line}\n" for line in lines)

    def _append(self, path: Path, lines: Sequence[str]) -> None:
        """All of the lines or none."""
        with self._writing, self.lock():
            self._check_held()
            _mend(path)
            with path.open("ab", buffering=0) as file:
                before, rest = file.tell(), memoryview("".join(f"{line}\n" for line in lines).encode(errors="replace"))
                try:
                    while rest:  # a disk that gets full takes a part
                        rest = rest[file.write(rest) :]
                    os.fsync(file.fileno())
                except OSError:
                    with suppress(OSError):
                        file.truncate(before)
                    raise


class _RoundLine(BaseModel):
    """What is read of a round's record, and must be so."""

    cell_id: str
    round: int


class _ClientLine(BaseModel):
    """What is read of a client's line, and must be so."""

    cell_id: str
    client: int
    name: str
    own_balanced_accuracy: float | None
    shared_balanced_accuracy: float | None


_WORDS = (b'inf"', b'"nan"')
"""One of them is in every line with a number that is not finite."""
_NO_RECORD = (ValueError, KeyError, TypeError, AttributeError)
"""What reading a line raises that is none of fedsim's."""


def _broken(path: Path, number: int, error: Exception, follows: str = "what it told is lost") -> UserError:
    what = "; ".join(reasons(error))
    return UserError(f"{path}:{number}", f"this line cannot be read ({what})", f"remove the line; {follows}")


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
        if is_json(content[start:]):
            file.write(b"\n")
        else:
            file.truncate(start)
