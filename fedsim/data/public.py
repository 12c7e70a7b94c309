"""Public rows: they are no unit's, so whatever is computed from them alone is free; what mixes in a private row is a release."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic_core import CoreSchema, core_schema

from fedsim.data.normalise import unit_norm
from fedsim.errors import UserError
from fedsim.words import counted

if TYPE_CHECKING:
    import torch

MORE_STAND_INS = 256
"""Rows beyond the number of dimensions that stand in for public ones where a method is only looked at; no data set has them."""


@dataclass(frozen=True, eq=False)
class PublicRows:
    """A grid's public rows, prepared like the private ones.

    Attributes:
        x: float32 ``[n, d]``, of unit norm; read-only in a worker.
        y: int64 ``[n]``, labels in ``0 .. classes - 1`` of the public source, not of the private data; None where it has none.
        name: what tables call them.
        licence: of their source, in words; None where that is not known.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64] | None = None
    name: str = "public"
    licence: str | None = None

    @classmethod
    def made_up(cls, dim: int, classes: int) -> Self:
        """Labelled rows of no data set, always the same, for rehearsals, checks and audits: there they are no private rows."""
        x = np.random.default_rng(0).standard_normal((dim + MORE_STAND_INS, dim), dtype=np.float32)
        return cls(unit_norm(x), np.arange(len(x), dtype=np.int64) % classes, "made up")

    def rows(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """A copy of ``x`` on a device."""
        import torch  # a report does without

        return torch.tensor(self.x, device=device)

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of rows and labels; the name is no part of it."""
        digest = hashlib.sha256(f"public {self.x.shape} {self.y is not None}\n".encode())
        for array in (self.x, self.y):
            content: Any = b"" if array is None else np.ascontiguousarray(array)
            digest.update(content)
        return digest.hexdigest()[:16]

    @cached_property
    def _known(self) -> frozenset[bytes]:
        """Of every row a digest, made once for all parts of all data sets."""
        return frozenset(_digests(self.x))

    def check_apart(self, private: NDArray[np.float32], part: str, name: str) -> None:
        """Refuse private rows ``[m, d]`` that are public too: the ``part`` (training, test) of the data set ``name``.

        This reads private rows, and tells the user of a simulation of a mistake in the grid; nothing of it is in a result or a release.
        """
        both = [row for row, digest in enumerate(_digests(private)) if digest in self._known]
        if both:
            what = f"{counted(len(both), f'{part} row')} of '{name}' {'is' if len(both) == 1 else 'are'} public too"
            raise UserError("", f"{what}, the first is row {both[0]}", "give public rows that are in no private data set")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        return core_schema.is_instance_schema(cls)  # no file holds them


def _digests(x: NDArray[np.float32]) -> Iterator[bytes]:
    for row in np.ascontiguousarray(x) + np.float32(0):  # -0.0 becomes 0.0
        yield hashlib.sha256(row).digest()
