"""Errors of validation in the words of a grid file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from fedsim.errors import UserError, nearest
from fedsim.grid.places import Loc


def spelled(value: Any) -> str:
    """A value as the grid file would spell it, shortened."""
    if value is None:
        return "nothing"
    value = getattr(value, "display", value)
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple | set):
        return "a list"
    text = f"'{' '.join(value.splitlines())}'" if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else f"{value}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def translated(error: ValidationError, model: type[BaseModel], place: Callable[[Loc], str]) -> UserError:
    """The first error as a ``UserError``; an unknown key goes first, for it explains the missing one."""
    errors = error.errors(include_url=False)
    first: Any = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    loc: Loc = first["loc"]
    if first["type"] == "invalid_key" or (first["type"] == "string_type" and loc[-1:] == ("[key]",)):
        key = "null" if first["input"] is None else spelled(first["input"])
        return UserError(place(loc[: -2 if loc[-1] == "[key]" else -1]), f"the key {key} is not text", "give a text key")
    where = place(loc)
    if first["type"] == "extra_forbidden":
        key = str(loc[-1])
        return UserError(where, f"unknown key '{key}'", nearest(key, _keys_of(_model_at(model, loc[:-1]))))
    return UserError(where, *_complaint(first))


def _keys_of(model: type[BaseModel]) -> Iterable[str]:
    return model.model_fields


def _model_at(model: type[BaseModel], loc: Loc) -> type[BaseModel]:
    for part in loc:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)


def _complaint(error: Mapping[str, Any]) -> tuple[str, str]:
    """What is wrong, and a hint, of one pydantic error."""
    kind, given, context = error["type"], spelled(error["input"]), error.get("ctx", {})
    if kind == "missing":
        return "is missing", "give a value"
    if kind in ("value_error", "assertion_error"):
        what, _, hint = str(context["error"]).partition("; ")
        return what, hint
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        if not known or error["loc"][-1:] in _PRIVACY:
            return f"unknown value {given}", f"give {context['expected']}"
        return f"unknown value {given}", nearest(str(error["input"]), known)
    if kind == "greater_than" and context["gt"] == 0:
        return f"{given} is not positive", "give a number > 0"
    bounds = {
        "greater_than": ("gt", ">"),
        "greater_than_equal": ("ge", ">="),
        "less_than": ("lt", "<"),
        "less_than_equal": ("le", "<="),
    }
    if kind in bounds:
        key, sign = bounds[kind]
        return f"{given} is not {sign} {context[key]}", f"give a number {sign} {context[key]}"
    if kind == "string_pattern_mismatch":
        return f"{given} does not do as a folder name", "give at most 100 letters, digits, '.', '_' and '-', the first a letter or a digit"
    if kind in ("string_too_short", "too_short"):
        return "is empty", "give a value"
    if context.get("class_name") in _NAMED:
        return "has no value" if error["input"] is None else f"{given} is neither a name nor a mapping", "give a name or a mapping"
    for start, noun in _NOUNS.items():
        if kind.startswith(start):
            return "has no value" if error["input"] is None else f"{given} is not {noun}", f"give {noun}"
    return f"{given}: {error['msg']}", ""


_PRIVACY = {(name,) for name in ("trust", "noise", "noised", "scope")}
"""Settings of privacy, of whose values none is guessed: a near word may protect something else."""
_NAMED = ("DatasetSpec", "EncoderSpec")
"""The models that a grid may give as a bare name, too."""
_NOUNS = {
    "float_": "a number",
    "finite_number": "a finite number",
    "int_": "a whole number",
    "bool_": "true or false",
    "string_": "text",
    "path_": "a path",
    "model_": "a mapping",
    "dict_": "a mapping",
    "mapping_": "a mapping",
    "list_": "a list",
    "tuple_": "a list",
}
