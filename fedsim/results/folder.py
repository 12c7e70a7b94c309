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
        """A row a cell, appended."""
        return self.path / "results.jsonl"

    @property
    def rounds(self) -> Path:
        """A record a round, appended."""
        return self.path / "rounds.jsonl"

    @property
    def clients(self) -> Path:
        """A line a client of every cell that was judged by clients, appended."""
        return self.path / "clients.jsonl"

    @property
    def audits(self) -> Path:
        """What audits saw, a line a pair of trainings, appended."""
        return self.path / "audits.jsonl"

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
    def generators(self) -> Path:
        """The folder of the saved generators."""
        return self.path / "generators"

    @property
    def lock(self) -> Path:
        """Held by the one process that writes here."""
        return self.path / ".lock"

    def generator(self, name: str) -> Path:
        """The facts of a saved generator; its tensors stand beside them with the suffix ``.safetensors``."""
        return self.generators / f"{name}.json"

    def checkpoint(self, cell_id: str) -> Path:
        """The checkpoint of a cell under way; absolute, for workers elsewhere in the file system."""
        return self.path.absolute() / "checkpoints" / f"{cell_id}.safetensors"

    def log(self, cell_id: str) -> Path:
        """The log of a cell."""
        return self.path / "logs" / f"{cell_id}.log"

    def check(self) -> None:
        """Check that a bench has run here.

        Raises:
            UserError: there are no results.
        """
        if not self.results.exists():
            raise UserError(str(self.path), f"there is no {self.results.name} here", "give a run folder, such as runs/quickstart")
