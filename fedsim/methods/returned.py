"""What a method's own functions return, checked where they are called.

A mistake in one of them is raised with its file and line, what was returned, and the contract,
before a library meets the value and says something of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from fedsim.batch import Batch
from fedsim.errors import PluginError
from fedsim.files import line_of

LOSS_CONTRACT = (
    "loss(self, model, batch) must return a dict of float tensors of shape [n], one number for "
    "each row of the batch"
)
SAMPLE_CONTRACT = (
    "sample(self, labels, stream) must return a float32 tensor of shape [n, d], one row for each "
    "label"
)
GENERATOR_CONTRACT = "generator(self, server) must return an object with sample(labels, stream)"
CLASSIFIER_CONTRACT = "classifier(self, server) must return an object with probabilities(x)"


def loss_parts(algorithm: Any, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Returns the parts of an algorithm's loss by name, shape ``[n]`` for a batch of n rows.

    Raises:
        PluginError: the loss takes other arguments, or returns anything else.
    """
    parts = _called(algorithm.loss, (model, batch), LOSS_CONTRACT)
    if not isinstance(parts, Mapping):
        raise _broken(algorithm.loss, f"returned {described(parts)}", LOSS_CONTRACT)
    if not parts:
        raise _broken(algorithm.loss, "returned an empty dict", LOSS_CONTRACT)
    for name, part in parts.items():
        if (
            not isinstance(part, Tensor)
            or part.shape != (len(batch),)
            or not part.is_floating_point()
        ):
            what = f"returned '{name}' as {described(part)} for {len(batch)} rows"
            raise _broken(algorithm.loss, what, LOSS_CONTRACT)
    return dict(parts)


def sampled_rows(generator: Any, labels: Tensor, stream: Any, width: int | None = None) -> Tensor:
    """Returns a generator's rows for labels ``[n]``, shape ``[n, width]``.

    Args:
        generator: a method's, or one of fedsim's around it.
        labels: int64.
        stream: the generator of random numbers that it may draw from.
        width: the number of columns that rows must have; None: any.

    Raises:
        PluginError: it has no ``sample`` of two arguments, or that returns anything else.
    """
    if not callable(getattr(generator, "sample", None)):
        what = "has no method sample"
        raise PluginError(_place(type(generator)), what, SAMPLE_CONTRACT)
    rows = _called(generator.sample, (labels, stream), SAMPLE_CONTRACT)
    if (
        not isinstance(rows, Tensor)
        or rows.dim() != 2
        or len(rows) != len(labels)
        or not rows.is_floating_point()
    ):
        what = f"returned {described(rows)} for {len(labels)} labels"
        raise _broken(generator.sample, what, SAMPLE_CONTRACT)
    if width is not None and rows.shape[1] != width:
        what = f"returned {described(rows)}, and the rows that it learned from have {width} columns"
        raise _broken(generator.sample, what, SAMPLE_CONTRACT)
    return rows


def check_product(made: Any, make: Callable[..., Any], *, generates: bool) -> None:
    """Refuse what ``make``, a method's ``generator`` or ``classifier``, returned, if it lacks the
    function for which it is made.
    """
    if generates:
        needed = "sample"
    else:
        needed = "probabilities"
    if callable(getattr(made, needed, None)):
        return
    if generates:
        contract = GENERATOR_CONTRACT
    else:
        contract = CLASSIFIER_CONTRACT
    raise _broken(make, f"returned {described(made)}, which has no {needed}", contract)


def described(value: Any) -> str:
    """A returned value in a few words: its kind and, of an array, its shape."""
    if value is None:
        return "None"
    if isinstance(value, Tensor):
        if value.is_floating_point():
            kind = "a tensor"
        else:
            kind = f"a tensor of {value.dtype}"
        return f"{kind} of shape {list(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"a numpy array of shape {list(value.shape)}"
    return f"an object of type {type(value).__name__}"


def _called(function: Callable[..., Any], arguments: tuple[Any, ...], contract: str) -> Any:
    """What a function returns; a signature that cannot take the arguments is told as such."""
    try:
        return function(*arguments)
    except TypeError as error:
        try:
            signature = inspect.signature(function)
        except ValueError:  # of a function that is not written in Python
            raise error from None
        try:
            signature.bind(*arguments)
        except TypeError:
            taken = ", ".join(signature.parameters)
            raise _broken(function, f"takes ({taken})", contract) from error
        raise


def _broken(function: Callable[..., Any], what: str, contract: str) -> PluginError:
    return PluginError(_place(function), what, contract)


def _place(thing: Any) -> str:
    """File and line of a function or class, and its name."""
    name = str(getattr(thing, "__qualname__", type(thing).__name__))
    line = line_of(thing)
    if line == name:
        return name
    return f"{line}: {name}"
