"""The run folder: what stands where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedsim.errors import UserError


@dataclass(frozen=True)
class RunFolder:
    """The file names of one run folder.

    Attributes:
        path: the folder; it need not exist.
    """

    path: Path

    @property
    def results(self) -> Path:
        """A row a cell; made anew from the result lines, as the summary is."""
        return self.path / "results.jsonl"

    def lines(self, kind: str) -> Path:
        """The result lines of one kind (:data:`fedsim.results.store.KINDS`), appended."""
        return self.path / f"{kind}.jsonl"

    @property
    def clients(self) -> Path:
        """A line a client of every cell that was judged by clients; made anew from the result lines."""
        return self.path / "clients.jsonl"

    @property
    def summary(self) -> Path:
        """The rows averaged over seeds."""
        return self.path / "summary.csv"

    @property
    def manifest(self) -> Path:
        """What ran, on what."""
        return self.path / "manifest.json"

    @property
    def partitions(self) -> Path:
        """The label-by-client matrices that the report draws."""
        return self.path / "partitions.json"

    @property
    def page(self) -> Path:
        """The report."""
        return self.path / "report.html"

    @property
    def curves(self) -> Path:
        """The folder of the report's figures."""
        return self.path / "curves"

    @property
    def trained(self) -> Path:
        """The folder of what trainings made."""
        return self.path / "trained"

    @property
    def lock(self) -> Path:
        """Held by the one process that writes here."""
        return self.path / ".lock"

    def state(self, training_id: str) -> Path:
        """The tensors that a training left."""
        return self.trained / f"{training_id}.safetensors"

    def checkpoint(self, training_id: str) -> Path:
        """The checkpoint of a training under way; absolute, for workers elsewhere in the file system."""
        return self.path.absolute() / "checkpoints" / f"{training_id}.safetensors"

    def log(self, cell_id: str) -> Path:
        """The log of a cell."""
        return self.path / "logs" / f"{cell_id}.log"

    def check(self) -> None:
        """Check that a bench has run here.

        Raises:
            UserError: there are no results.
        """
        if not self.lines("trainings").exists():
            raise UserError(str(self.path), "there are no results here", "give a run folder, such as runs/quickstart")
