"""The ``partition`` mapping of a grid: a scheme, and beside it the parameters that are the scheme's own."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedsim.data.spec import changed

Scheme = Literal["dirichlet", "dirichlet-client", "disjoint", "shards", "iid", "quantity", "column", "column-dirichlet", "feature-shift"]
_OWN = {"labels": ("shards",), "power": ("quantity",), "column": ("column", "column-dirichlet"), "strength": ("feature-shift",)}
"""Keys that are not every scheme's, and whose they are."""


class PartitionSpec(BaseModel):
    """How rows are divided among clients.

    Attributes:
        scheme: which clients hold a row.
        min_size: the fewest rows that a client may hold; of groups that stay together the fewest groups.
        together: a column whose rows of one value stay with one client, such as a patient's; a grid's unit, where it is such a column.
        labels: of ``shards``: how many labels each client holds.
        power: of ``quantity``: the client of rank r holds rows in proportion to ``r ** -power``.
        column: of ``column`` and ``column-dirichlet``: the data set's column whose values are the clients', or have clients of their own.
        strength: of ``feature-shift``: size of each client's shift, 0 = none; at 10 a client's rows are hardly more than its own direction.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheme: Scheme = "dirichlet"
    min_size: int = Field(default=2, ge=1, strict=True)
    together: str | None = Field(default=None, min_length=1)
    labels: int = Field(default=2, ge=1, strict=True)
    power: float = Field(default=1.0, ge=0, le=10, allow_inf_nan=False, strict=True)
    column: str | None = Field(default=None, min_length=1)
    strength: float = Field(default=0.5, ge=0, le=10, allow_inf_nan=False, strict=True)

    @model_validator(mode="after")
    def _of_one_scheme(self) -> Self:
        if wrong := next((name for name in sorted(changed(self) & _OWN.keys()) if self.scheme not in _OWN[name]), None):
            raise ValueError(f"scheme '{self.scheme}' takes no {wrong}; remove it or give scheme: {' or '.join(_OWN[wrong])}")
        if self.scheme in _OWN["column"] and self.column is None:
            raise ValueError(f"scheme '{self.scheme}' needs the name of a column; give column: NAME")
        return self

    @property
    def uses_alpha(self) -> bool:
        """Whether ``alpha`` can change the partition."""
        return "dirichlet" in self.scheme

    @property
    def shifts(self) -> bool:
        """Whether every client sees values of its own."""
        return self.scheme == "feature-shift"
