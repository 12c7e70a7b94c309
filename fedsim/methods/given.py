"""External samples: synthetic examples that were made elsewhere, in a file.

Opacus, a colleague or another framework may have made them. They take part in a grid as a method
whose generator returns these examples.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from fedsim.data.arrays import BadArrays, read_arrays
from fedsim.data.embeddings import Embeddings, not_whole_numbers
from fedsim.data.split import TEST
from fedsim.errors import UserError, at
from fedsim.methods.algorithm import Algorithm, Params, Phase
from fedsim.methods.messages import Server
from fedsim.methods.products import FiniteRows
from fedsim.privacy.plan import Trust


class GivenRowsParams(Params):
    """A grid's entry ``{rows: FILE, epsilon: 3.1, delta: 1e-4, unit: example, trust: aggregate}``.

    Nothing of what the author states is verified.

    Attributes:
        rows: an .npz file of embeddings ``x`` [n, d] and labels ``y`` [n], numbered as the classes
            of the data set are.
        epsilon: the author's epsilon of the examples; ``.inf``: no privacy is claimed.
        delta: the delta for which a finite epsilon holds. The grid refuses a finite epsilon whose
            delta, unit or trust is missing or not its own.
        unit: what a finite epsilon protects: ``example``, ``client`` or ``{column: NAME}``.
        trust: from whom a finite epsilon protects: ``aggregate`` or ``silo``.
        claim: what epsilon rests on, says the author: ``stated`` is a theorem, ``heuristic`` is an
            argument without proof, ``none`` is nothing.
        sha256: the hash of the file; it is filled in when a grid is read.
    """

    rows: str
    epsilon: float = Field(math.inf, gt=0)
    delta: float | None = Field(None, gt=0)
    unit: Literal["example", "client"] | dict[Literal["column"], str] | None = None
    trust: Trust | None = None
    claim: Literal["stated", "heuristic", "none"] = "stated"
    sha256: str = ""


class GivenRows(Algorithm):
    """External samples: nothing is trained, and their epsilon is stated by their author only."""

    Params = GivenRowsParams
    private = False

    def phases(self) -> tuple[Phase, ...]:
        """Return no phases: the examples of clients are not read."""
        return ()

    def build(self, clients: int) -> nn.Module:
        """Return an empty model: there is nothing to train."""
        return nn.Module()

    def ignores_partition(self) -> bool:
        """Return True: the external samples are the same for any partition."""
        return True

    def check_setting(self) -> None:
        """Refuse a file without embeddings and labels of this data set.

        Raises:
            UserError: what is wrong with the file.
        """
        self.generator()

    def generator(self, server: Server | None = None) -> FiniteRows:
        """Return a generator of the file's examples; the server is not needed.

        Raises:
            UserError: what is wrong with the file.
        """
        path = Path(self.params.rows)
        with at(str(path)):
            x, y = self._read(path)
            self._check_labels(y)
            split = np.zeros(y.shape, np.int64)
            # A data set needs a test part, too, so the first example is put there. Each class must
            # keep another one for training.
            split.flat[0] = TEST
            data = Embeddings.from_arrays(path.name, x, y, split)
            task = self.task
            if data.dim != task.dim:
                raise UserError(
                    "",
                    f"its samples have {data.dim} dimensions, and the data set has {task.dim}",
                    "make the samples with the encoder of the data set",
                )
            if data.classes != task.classes:
                raise UserError(
                    "",
                    f"its samples have {data.classes} classes, and the data set has {task.classes}",
                    "give samples of the classes of the data set, with the same numbers",
                )
        x = np.concatenate([data.x_train, data.x_test])
        y = np.concatenate([data.y_train, data.y_test])
        return FiniteRows(torch.from_numpy(x), torch.from_numpy(y))

    def _read(self, path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
        """Read embeddings and labels; refuse a file that has changed since the grid was read."""
        try:
            arrays = read_arrays(path)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            x = arrays["x"]
            y = arrays["y"]
        except (BadArrays, KeyError) as error:
            raise UserError(
                "",
                f"cannot be read ({error})",
                "give an .npz file of plain arrays x [n, d] and y [n], as numpy.savez writes it",
            ) from error
        if digest != self.params.sha256:
            raise UserError(
                "",
                "is not the file that it was when the grid was read",
                "run the grid again",
            )
        return x, y

    def _check_labels(self, y: NDArray[Any]) -> None:
        """Refuse labels that are no whole numbers, and classes with fewer than two examples."""
        classes = self.task.classes
        problem = not_whole_numbers(y, "y")
        if problem:
            hint = f"give the numbers 0 to {classes - 1} of the data set's classes"
            raise UserError("", problem, hint)
        labels, counts = np.unique(y, return_counts=True)
        enough = set(labels[counts > 1].tolist())
        for label in range(classes):
            if label not in enough:
                raise UserError("", f"class {label} has fewer than two rows", "give more")
