"""External samples: synthetic rows that were made elsewhere (by Opacus, a colleague, another
framework), as a method whose generator yields these rows.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch
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
        rows: an .npz file of embeddings ``x`` [n, d] and labels ``y`` [n], numbered as the data
            set's classes are.
        epsilon: what they cost, as stated by their author; ``.inf``: no privacy, and no claim.
        delta: the delta that a finite epsilon holds for. It must be the grid's, as must be unit
            and trust.
        unit: what a finite epsilon protects: ``example``, ``client`` or ``{column: NAME}``.
        trust: whom a finite epsilon protects from: ``aggregate`` or ``silo``.
        claim: what epsilon rests on, as stated by the author: ``stated``, a theorem;
            ``heuristic``; ``none``.
        sha256: of the file; filled in as a grid is read.
    """

    rows: str
    epsilon: float = Field(math.inf, gt=0)
    delta: float | None = Field(None, gt=0)
    unit: Literal["example", "client"] | dict[Literal["column"], str] | None = None
    trust: Trust | None = None
    claim: Literal["stated", "heuristic", "none"] = "stated"
    sha256: str = ""


class GivenRows(Algorithm):
    """External samples: nothing is trained here, and what they cost is as stated by their author,
    not verified.
    """

    Params = GivenRowsParams
    private = False

    def phases(self) -> tuple[Phase, ...]:
        """None: clients' rows are not looked at."""
        return ()

    def build(self, clients: int) -> nn.Module:
        """Nothing to train."""
        return nn.Module()

    def ignores_partition(self) -> bool:
        """The rows are the same however clients share out theirs."""
        return True

    def check_setting(self) -> None:
        """Refuse a file without rows of such a data set."""
        self.generator()

    def generator(self, server: Server | None = None) -> FiniteRows:
        """The file's rows; no server has any."""
        path = Path(self.params.rows)
        task = self.task
        with at(str(path)):
            try:
                arrays = read_arrays(path)
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                x = arrays["x"]
                y = arrays["y"]
            except (BadArrays, KeyError) as error:
                raise UserError(
                    "",
                    f"cannot be read ({error})",
                    "give an .npz file of plain arrays x [n, d] and y [n], as numpy.savez writes "
                    "it",
                ) from error
            if digest != self.params.sha256:
                raise UserError(
                    "", "is not the file that it was when the grid was read", "run the grid again"
                )
            if wrong := not_whole_numbers(y, "y"):
                what_is_right = (
                    f"give the numbers 0 to {task.classes - 1} of the data set's classes"
                )
                raise UserError("", wrong, what_is_right)
            labels, counts = np.unique(y, return_counts=True)
            if few := sorted(set(range(task.classes)) - set(labels[counts > 1].tolist())):
                raise UserError("", f"class {few[0]} has fewer than two rows", "give more")
            split = np.zeros(y.shape, np.int64)
            split.flat[0] = TEST  # a data set has both parts
            data = Embeddings.from_arrays(path.name, x, y, split)
            if (data.dim, data.classes) != (task.dim, task.classes):
                raise UserError(
                    "",
                    f"has {data.dim} dimensions and {data.classes} classes",
                    f"the data has {task.dim} and {task.classes}",
                )
        x = np.concatenate([data.x_train, data.x_test])
        y = np.concatenate([data.y_train, data.y_test])
        return FiniteRows(torch.from_numpy(x), torch.from_numpy(y))
