"""The ``partition`` mapping of a grid: a scheme and its parameters, typed and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from fedsim.errors import nearest
from fedsim.partition.schemes import SCHEMES


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
        scheme = SCHEMES.get(str(given.get("scheme"))) if isinstance(given, Mapping) else None
        return {**{name: value for name, value in scheme.takes.items() if value is not None}, **given} if scheme else given

    @field_validator("scheme")
    @classmethod
    def _known_scheme(cls, scheme: str) -> str:
        if scheme not in SCHEMES:
            raise ValueError(f"unknown scheme '{scheme}'; {nearest(scheme, SCHEMES)}")
        return scheme

    @field_validator("column", "labels", "power", "strength")
    @classmethod
    def _parameter_fits(cls, value: Any, info: ValidationInfo) -> Any:
        scheme, name = info.data.get("scheme"), str(info.field_name)
        if scheme is None:
            return value
        if name in SCHEMES[scheme].takes:
            if value is None and SCHEMES[scheme].takes[name] is None:
                raise ValueError(f"scheme '{scheme}' needs the name of a {name}; give {name}: NAME")
        elif value:
            owners = " or ".join(each for each, other in SCHEMES.items() if name in other.takes)
            raise ValueError(f"scheme '{scheme}' takes no {name}; remove it or give scheme: {owners}")
        return value

    @property
    def given(self) -> Mapping[str, Any]:
        """The parameters that the scheme takes as its own."""
        return {name: getattr(self, name) for name in SCHEMES[self.scheme].takes}

    @property
    def uses_alpha(self) -> bool:
        """Whether ``alpha`` can change the partition."""
        return SCHEMES[self.scheme].uses_alpha
