"""The run folder: what stands where, and its append-only files."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import BaseModel, create_model

from fedsim.errors import RunLost, UserError
from fedsim.files import unread
from fedsim.json_lines import complete_lines, decode, dump, has_words, is_json, load, reasons
from fedsim.words import encodable

Kind = Literal["trainings", "judgements", "references", "audits", "pairs", "checks", "rounds"]
_KEYS: dict[Kind, dict[str, Any]] = {
    "trainings": {"training_id": str, "cell": dict[str, Any], "error": dict[str, str] | None},
    "judgements": {"cell_id": str, "training_id": str, "error": dict[str, str] | None},
    "references": {"reference": str},
    "audits": {"audit": str, "claim": str},
    "pairs": {"audit": str, "pair": int},
    "checks": {
        "source": str,
        "unit": str,
        "trust": str,
        "params": dict[str, Any],
        "full": bool,
        "ended": Literal["passed", "failed"],
    },
    "rounds": {"training_id": str, "round": int},
}
HOLDER = "fedsim, process "
"""How the lock of a run folder begins; the process's number follows."""
RESTORE = "restore it or run the grid again in a new folder"
"""What helps where a file of a run folder is damaged."""
KINDS: dict[Kind, type[BaseModel]] = {
    kind: create_model(kind, **keys) for kind, keys in _KEYS.items()
}
"""The kinds of result lines, each a file, and the keys that every line of a kind has; the first one
is its key.
"""


class RunFolder:
    """The file names of one run folder.

    Attributes:
        path: the folder; it need not exist.
        results: a row a cell; made anew from the result lines, as clients are.
        clients: a line a client of every cell that was judged by clients.
        manifest: what ran, on what.
        partitions: the label-by-client matrices that the report draws.
        page: the report.
        curves: the folder of the report's figures.
        lock: held by the one process that writes here.
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
        """The result lines of one of :data:`KINDS`, appended."""
        return self.path / f"{kind}.jsonl"

    def state(self, training_id: str) -> Path:
        """The tensors that a training left."""
        return self.path / "trained" / f"{training_id}.safetensors"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints of trainings under way."""
        return self.path.absolute() / "checkpoints"

    def checkpoint(self, training_id: str) -> Path:
        """The checkpoint of a training under way; absolute, for workers elsewhere in the file
        system.
        """
        return self.checkpoints / f"{training_id}.safetensors"

    def log(self, cell_id: str) -> Path:
        """The log of a cell."""
        return self.path / "logs" / f"{cell_id}.log"

    def check_no_file(self) -> None:
        """Refuse a path where results cannot go because a file has it."""
        if os.path.lexists(self.path) and not os.path.isdir(self.path):
            raise UserError(
                str(self.path),
                "is a file, and results need a folder",
                "give a new folder, or that of an earlier run",
            )

    def check(self) -> None:
        """Check that a bench has run here."""
        if not self.lines("trainings").exists():
            raise UserError(
                str(self.path),
                "there are no results here",
                "give a run folder, such as runs/quickstart",
            )
        if not self.manifest.exists():
            raise UserError(str(self.manifest), "cannot be read (no such file)", RESTORE)

    def check_own(self) -> None:
        """Check that nobody else's files are here, which a bench would replace or mix with its own.

        A folder is a bench's own if it is new or empty, if its manifest is one that fedsim wrote,
        or if it holds no more than a bench leaves that ended before its first manifest.

        Raises:
            UserError: the folder holds other files.
        """
        if not os.path.isdir(self.path) or self._has_manifest():
            return
        others = sorted(path.name for path in self.path.iterdir() if not self._precedes(path))
        if others:
            if len(others) > 3:
                more = ", …"
            else:
                more = ""
            raise UserError(
                str(self.path),
                "is not empty and has no manifest of a fedsim run (it holds "
                f"{', '.join(others[:3])}{more})",
                "give a new or empty folder with `out`",
            )

    def _has_manifest(self) -> bool:
        """Whether there is a manifest with fedsim's version, as every fedsim has written it."""
        try:
            return "fedsim" in load(self.manifest.read_bytes())["versions"]
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def _precedes(self, path: Path) -> bool:
        """Whether a file may be there before a manifest: the lock, half a manifest, an audit."""
        if path == self.lock:
            if path.is_file():
                text = path.read_text(errors="replace")
            else:
                text = "no file"
            return not text or text.startswith(HOLDER)
        half = path.name.startswith(f".{self.manifest.name}.") and path.suffix == ".part"
        return half or path == self.lines("pairs")


class ResultStore:
    """The append-only files of one run folder: a line for every result of a job.

    Reading needs no lock. Every append takes the folder's lock unless ``lock()`` already holds it,
    so two fedsim processes never write to one folder at a time.

    Args:
        folder: the run folder; made by the first append or lock.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = RunFolder(Path(folder))
        self._held: IO[str] | None = None

    @contextmanager
    def lock(self) -> Iterator[ResultStore]:
        """Hold the run folder alone; the lock goes when the block ends or the process dies."""
        if self._held is not None:
            yield self
            return
        self.folder.check_no_file()
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            file = self.folder.lock.open("a+")
        except OSError as error:
            raise UserError(
                str(self.folder.path),
                f"cannot be written ({unread(error)})",
                "make it writable, or give another one",
            ) from error
        with file:
            self._take(file)
            self._held = file
            try:
                file.truncate(0)
                file.write(f"{HOLDER}{os.getpid()},")
                file.flush()
                yield self
            except OSError as error:
                if isinstance(error, ConnectionError | TimeoutError):  # not a file's
                    raise
                where = str(
                    error.filename2 or error.filename or self.folder.path
                )  # of a replaced file its own name, not the new one's
                raise RunLost(
                    where,
                    f"cannot be written ({unread(error)})",
                    "finished rows are kept, the same command goes on",
                ) from error
            finally:
                self._held = None

    def check_free(self) -> None:
        """Check, without making anything, that the folder's path can be written down, that no other
        fedsim holds it, and that nobody else's files are in it.
        """
        if encodable(path := str(self.folder.path.absolute())) != path:
            raise UserError(
                ascii(str(self.folder.path.absolute())),
                "is no path in UTF-8, which Ray and JSON need",
                "rename it",
            )
        if self._held is None and os.path.isfile(self.folder.lock):
            with suppress(PermissionError), self.folder.lock.open() as file:
                self._take(file)
        self.folder.check_own()

    def _take(self, file: IO[str]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another fedsim"
            raise UserError(
                str(self.folder.path),
                f"{holder} is running in this folder",
                "wait for it or stop it",
            ) from error

    def append(self, kind: Kind, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add result lines of one kind, in one write that is on disk when this returns, all or
        none; a line is never changed again.
        """
        path = self.folder.lines(kind)
        rest = memoryview("".join(f"{dump(line)}\n" for line in lines).encode(errors="replace"))
        if not rest:
            return
        with self.lock():
            _mend(path)
            with path.open("ab", buffering=0) as file:
                before = file.tell()
                try:
                    while rest:  # a disk that gets full takes a part
                        rest = rest[file.write(rest) :]
                    os.fsync(file.fileno())
                except OSError:
                    with suppress(OSError):
                        file.truncate(before)
                    raise

    def lines(self, kind: Kind) -> Iterator[dict[str, Any]]:
        """The lines of one kind in the order in which they were written; numbers that are not
        finite as numbers.
        """
        path = self.folder.lines(kind)
        model = KINDS[kind]
        for number, line in complete_lines(path):
            try:
                values = load(line)
                model.model_validate(values, strict=True)
            except ValueError as error:
                raise UserError(
                    f"{path}:{number}", f"cannot be read ({'; '.join(reasons(error))})", RESTORE
                ) from error
            yield decode(values) if has_words(line) else values

    def last(self, kind: Kind) -> dict[str, dict[str, Any]]:
        """The last line of every key; of a training one that succeeded stands before one that
        failed.
        """
        found: dict[str, dict[str, Any]] = {}
        key = next(iter(_KEYS[kind]))
        for line in self.lines(kind):
            if (
                kind != "trainings"
                or line["error"] is None
                or found.get(line[key], line)["error"] is not None
            ):
                found[line[key]] = line
        return found

    def audit_pairs(self, key: str) -> list[dict[str, Any]]:
        """What an audit has seen so far, by number, without its key."""
        own = {line["pair"]: line for line in self.lines("pairs") if line["audit"] == key}
        return [
            {name: value for name, value in own[number].items() if name != "audit"}
            for number in sorted(own)
        ]

    def rounds(self) -> dict[str, list[dict[str, Any]]]:
        """The round records by training, in order of the round; a training that ran again replaces
        its records from that round on.
        """
        by_training: dict[str, list[dict[str, Any]]] = {}
        for record in self.lines("rounds"):
            kept = by_training.setdefault(record["training_id"], [])
            while kept and kept[-1]["round"] >= record["round"]:
                kept.pop()
            kept.append(record)
        return by_training

    def log(self, cell_id: str, lines: Iterable[str]) -> None:
        """Add lines to a cell's log."""
        path = self.folder.log(cell_id)
        with self.lock():
            path.parent.mkdir(exist_ok=True)
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(f"{line}\n" for line in lines)


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
