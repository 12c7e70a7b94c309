"""Models whose kind decides which further parameters they have: a partition's scheme, a data set's source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator


class KindParams(BaseModel):
    """The parameters of one kind; a kind that has any derives a class."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Tagged(BaseModel):
    """A model that holds, beside its own fields, the parameters of its kind, flat and with their defaults.

    The registry is open; pydantic's unions of classes are closed when they are defined.

    Attributes:
        kinds: by name; a kind's ``params`` is the class of its parameters.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    kinds: ClassVar[Mapping[str, Any]]

    @property
    def kind(self) -> str:
        """A key of ``kinds``."""
        raise NotImplementedError

    def check_kind(self) -> None:
        """Raise a ValueError if the model's own fields name no kind."""

    def refusal(self, name: str, owners: list[str]) -> str:
        """The message for a parameter that is only the ``owners``', sorted."""
        raise NotImplementedError

    @property
    def given(self) -> Any:
        """The kind's own parameters."""
        return self.kinds[self.kind].params.model_construct(**self.model_extra or {})

    @classmethod
    def known_keys(cls) -> set[str]:
        """All keys that a mapping may have, whatever its kind."""
        return {*cls.model_fields, *(name for kind in cls.kinds.values() for name in kind.params.model_fields)}

    @model_validator(mode="after")
    def _with_parameters(self) -> Self:
        written = self.__pydantic_extra__ or {}
        if unknown := [name for name in written if name not in self.known_keys()]:
            raise _error("extra_forbidden", unknown[0], written[unknown[0]])
        self.check_kind()
        params = self.kinds[self.kind].params
        own = {name: value for name, value in written.items() if name in params.model_fields}
        for name, value in written.items():
            if name not in own and value:
                owners = sorted(kind for kind, other in self.kinds.items() if name in other.params.model_fields)
                raise _error("value_error", name, value, error=ValueError(self.refusal(name, owners)))
        self.__pydantic_extra__ = dict(params.model_validate(own))
        return self


def _error(kind: Any, name: str, value: Any, **context: Any) -> ValidationError:
    return ValidationError.from_exception_data("", [{"type": kind, "loc": (name,), "input": value, "ctx": context}])
