"""The ``partition`` mapping of a grid: a scheme and its parameters, typed and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from fedsim.errors import nearest
from fedsim.partition.schemes import SCHEMES

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "shards": {"labels": 2},
    "quantity": {"power": 1.0},
    "feature-shift": {"strength": 0.5},
}
"""The parameters that one scheme alone takes, with their defaults there."""


class PartitionSpec(BaseModel):
    """How rows are divided among clients.

    Attributes:
        scheme: one of ``SCHEMES``.
        min_size: the fewest rows that a client may hold.
        column: for scheme ``column``: the data set's column whose values are the clients.
        labels: for scheme ``shards``: how many labels each client holds (default there 2).
        power: for scheme ``quantity``: the client of rank r holds rows in proportion to ``r ** -power`` (default there 1).
        strength: for scheme ``feature-shift``: size of each client's shift, 0 = none (default there 0.5).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheme: str = "dirichlet"
    min_size: int = Field(default=2, ge=1, strict=True)
    column: str | None = Field(default=None, validate_default=True)
    labels: int | None = Field(default=None, ge=1, strict=True)
    power: float | None = Field(default=None, ge=0, le=10, allow_inf_nan=False, strict=True)
    strength: float = Field(default=0.0, ge=0, allow_inf_nan=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        scheme = given.get("scheme") if isinstance(given, Mapping) else None
        return {**_DEFAULTS[scheme], **given} if isinstance(scheme, str) and scheme in _DEFAULTS else given

    @field_validator("scheme")
    @classmethod
    def _known_scheme(cls, scheme: str) -> str:
        if scheme not in SCHEMES:
            raise ValueError(f"unknown scheme '{scheme}'; {nearest(scheme, SCHEMES)}")
        return scheme

    @field_validator("column")
    @classmethod
    def _column_fits(cls, column: str | None, info: ValidationInfo) -> str | None:
        scheme = info.data.get("scheme")
        if scheme == "column" and column is None:
            raise ValueError("scheme 'column' needs the name of a column; give column: NAME")
        if scheme not in (None, "column") and column is not None:
            raise ValueError(f"scheme '{scheme}' takes no column; remove it or give scheme: column")
        return column

    @field_validator("labels", "power", "strength")
    @classmethod
    def _parameter_fits(cls, value: float | None, info: ValidationInfo) -> float | None:
        scheme, owner = info.data.get("scheme"), next(name for name, own in _DEFAULTS.items() if info.field_name in own)
        if scheme not in (None, owner) and value:
            raise ValueError(f"scheme '{scheme}' takes no {info.field_name}; remove it or give scheme: {owner}")
        return value

    @property
    def uses_alpha(self) -> bool:
        """Whether ``alpha`` can change the partition."""
        return self.scheme in ("dirichlet", "dirichlet-client")
