"""The ``partition`` mapping of a grid: a scheme, and beside it the parameters that are the scheme's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails

from fedsim.errors import nearest
from fedsim.partition.schemes import SCHEMES
from fedsim.partition.schemes.scheme import SchemeParams


class PartitionSpec(BaseModel):
    """How rows are divided among clients.

    Attributes:
        scheme: one of ``SCHEMES``.
        min_size: the fewest rows that a client may hold; of groups that stay together the fewest groups.
        together: a column whose rows of one value stay with one client, such as a patient's; a grid's unit, where it is such a column.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheme: str = "dirichlet"
    min_size: int = Field(default=2, ge=1, strict=True)
    together: str | None = Field(default=None, min_length=1)
    _given: SchemeParams = PrivateAttr(default_factory=SchemeParams)

    @field_validator("scheme")
    @classmethod
    def _known_scheme(cls, scheme: str) -> str:
        if scheme not in SCHEMES:
            raise ValueError(f"unknown scheme '{scheme}'; {nearest(scheme, SCHEMES)}")
        return scheme

    @model_validator(mode="wrap")
    @classmethod
    def _with_parameters(cls, given: Any, handler: ModelWrapValidatorHandler[PartitionSpec]) -> PartitionSpec:
        if not isinstance(given, Mapping):
            return handler(given)
        parameters = {name: value for name, value in given.items() if _owners(name)}
        spec = handler({name: value for name, value in given.items() if name not in parameters})
        spec._given = _validated(spec.scheme, parameters)
        return spec

    @model_serializer(mode="wrap")
    def _flat(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        own = {name: value for name, value in handler(self).items() if name != "together" or value is not None}
        return {**own, **self._given.model_dump(mode=info.mode)}

    @classmethod
    def known_keys(cls) -> set[str]:
        """All keys that a mapping may have, whatever its scheme."""
        return {*cls.model_fields, *(name for scheme in SCHEMES.values() for name in scheme.params.model_fields)}

    @property
    def given(self) -> SchemeParams:
        """The scheme's own parameters."""
        return self._given

    @property
    def things(self) -> str:
        """What is divided, in words."""
        return "rows" if self.together is None else f"values of {self.together}"

    @property
    def uses_alpha(self) -> bool:
        """Whether ``alpha`` can change the partition."""
        return SCHEMES[self.scheme].uses_alpha


def _owners(name: str) -> list[str]:
    """The schemes that have a parameter of this name."""
    return [each for each, scheme in SCHEMES.items() if name in scheme.params.model_fields]


def _validated(scheme: str, parameters: Mapping[str, Any]) -> SchemeParams:
    """The scheme's own of ``parameters``; what is another scheme's may only be empty."""
    own = {name: value for name, value in parameters.items() if scheme in _owners(name)}
    for name, value in parameters.items():
        if name not in own and value:
            what = f"scheme '{scheme}' takes no {name}; remove it or give scheme: {' or '.join(_owners(name))}"
            error = InitErrorDetails(type="value_error", loc=(name,), input=value, ctx={"error": ValueError(what)})
            raise ValidationError.from_exception_data("PartitionSpec", [error])
    return SCHEMES[scheme].params.model_validate(own)
