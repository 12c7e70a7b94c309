"""Checks the values that a method's functions return, where fedsim calls these functions.

An error names the function's file and line, the returned value and the broken contract. Without
these checks some library would fail on the value later, with a message that explains nothing.
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
    "loss(self, model, batch) must return a dict of float tensors of shape [n], such as "
    "{'loss': values}, with one number for each row of the batch and not their mean"
)
SAMPLE_CONTRACT = (
    "sample(self, labels, stream) must return a float32 tensor of shape [n, d], one row for each "
    "label"
)
GENERATOR_CONTRACT = "generator(self, server) must return an object with sample(labels, stream)"
CLASSIFIER_CONTRACT = "classifier(self, server) must return an object with probabilities(x)"


def loss_parts(
    algorithm: Any,
    model: nn.Module,
    batch: Batch,
) -> dict[str, Tensor]:
    """Return the parts of an algorithm's loss by name, shape ``[n]`` for a batch of n examples.

    Args:
        algorithm: an algorithm with a function ``loss(model, batch)``.
        model: the model.
        batch: n examples.

    Raises:
        PluginError: the loss takes other arguments, or returns no such dict.
    """
    parts = _call(algorithm.loss, (model, batch), LOSS_CONTRACT)
    if not isinstance(parts, Mapping):
        raise _contract_error(
            algorithm.loss, f"returned {described(parts)}, not a dict", LOSS_CONTRACT
        )
    if not parts:
        raise _contract_error(algorithm.loss, "returned an empty dict", LOSS_CONTRACT)
    for name, part in parts.items():
        if not _is_float_tensor(part) or part.shape != (len(batch),):
            problem = f"returned '{name}' as {described(part)} for {len(batch)} rows"
            raise _contract_error(algorithm.loss, problem, LOSS_CONTRACT)
    return dict(parts)


def sampled_rows(generator: Any, labels: Tensor, stream: Any, width: int | None = None) -> Tensor:
    """Return a generator's rows for labels ``[n]``, shape ``[n, width]``.

    Args:
        generator: the generator of a method, or a wrapper of fedsim around one.
        labels: labels, int64 ``[n]``.
        stream: the random numbers that it may draw from.
        width: the number of columns that rows must have; None: any number.

    Raises:
        PluginError: the generator has no ``sample(labels, stream)``, or ``sample`` returns no such
            tensor.
    """
    if not callable(getattr(generator, "sample", None)):
        raise PluginError(
            _location(type(generator)),
            "an object of this class was returned as a generator, so the class needs a method "
            "sample",
            SAMPLE_CONTRACT,
        )
    rows: Tensor = _call(generator.sample, (labels, stream), SAMPLE_CONTRACT)
    if not _is_float_tensor(rows) or rows.dim() != 2 or len(rows) != len(labels):
        problem = f"returned {described(rows)} for {len(labels)} labels"
        raise _contract_error(generator.sample, problem, SAMPLE_CONTRACT)
    if width is not None and rows.shape[1] != width:
        problem = (
            f"returned {described(rows)}, and the rows that it learned from have {width} columns"
        )
        raise _contract_error(generator.sample, problem, SAMPLE_CONTRACT)
    return rows


def _is_float_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def check_product(product: Any, make: Callable[..., Any], *, generates: bool) -> None:
    """Refuse a product without the function that a generator or a classifier must have.

    Args:
        product: the object that ``make`` returned.
        make: the method's function ``generator`` or ``classifier``.
        generates: True if the product must be a generator, with a function ``sample``. False if it
            must be a classifier, with a function ``probabilities``.

    Raises:
        PluginError: the product lacks that function.
    """
    if generates:
        needed = "sample"
        contract = GENERATOR_CONTRACT
    else:
        needed = "probabilities"
        contract = CLASSIFIER_CONTRACT
    if not callable(getattr(product, needed, None)):
        problem = f"returned {described(product)}, which has no {needed}"
        raise _contract_error(make, problem, contract)


def described(value: Any) -> str:
    """Return a few words about a value: its kind and, for an array, its shape."""
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


def _call(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    contract: str,
) -> Any:
    """Call a function of a method and return its result.

    A TypeError may mean that the function does not take these arguments. If it does take them, the
    error comes from inside the function and is raised unchanged.

    Raises:
        PluginError: the function does not take these arguments.
    """
    try:
        return function(*arguments)
    except TypeError as error:
        try:
            signature = inspect.signature(function)
        except ValueError:
            # A function that is not written in Python has no signature to compare with.
            raise error from None
        try:
            signature.bind(*arguments)
        except TypeError:
            parameters = ", ".join(signature.parameters)
            raise _contract_error(
                function, f"has the wrong parameters ({parameters})", contract
            ) from error
        raise


def _contract_error(function: Callable[..., Any], problem: str, contract: str) -> PluginError:
    """Return the error about a function that broke its contract."""
    return PluginError(_location(function), problem, contract)


def _location(function_or_class: Any) -> str:
    """Return the file, the line and the name of a function or class."""
    name = str(getattr(function_or_class, "__qualname__", type(function_or_class).__name__))
    line = line_of(function_or_class)
    if line == name:  # the file is unknown
        return name
    return f"{line}: {name}"
