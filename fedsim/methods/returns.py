"""Checks of what an algorithm's methods return, wherever it is used: types, shapes and dtypes, in microseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from fedsim.batch import Batch
from fedsim.errors import WrongReturn
from fedsim.methods.algorithm import Algorithm

Model = TypeVar("Model")
Kind = TypeVar("Kind")


def typed(method: Any, returned: Any, kind: type[Kind], expected: str, shape: tuple[int, ...] | None = None, what: str = "") -> Kind:
    """The value that ``method`` ``returned``, if it is a ``kind``, of this ``shape`` if one is given.

    Raises:
        WrongReturn: it is not; the message says what was ``expected``, and ``what`` names the part of the value.
    """
    if isinstance(returned, kind) and shape in (None, getattr(returned, "shape", None)):
        return returned
    raise WrongReturn(method, what + _described(returned), expected)


def loss_parts(loss: Callable[[Model, Batch], Mapping[str, Tensor]], model: Model, batch: Batch) -> dict[str, Tensor]:
    """The parts ``[N]`` of a loss per example, by name.

    Raises:
        WrongReturn: it returned something else.
    """
    parts, rows = loss(model, batch), len(batch)
    if not isinstance(parts, Mapping) or not parts:
        raise WrongReturn(loss, _described(parts), f"a mapping of loss parts by name, one number a row: [{rows}]")
    return {name: typed(loss, part, Tensor, f"one number a row: [{rows}]", (rows,), f"'{name}' as ") for name, part in parts.items()}


def answer(algorithm: Algorithm, made: Any, labels: Tensor, x: Tensor, stream: torch.Generator) -> Tensor:
    """Rows ``[n, d]`` of ``labels`` by the generator that an algorithm made, or class probabilities ``[n, C]`` of ``x`` by its classifier.

    Raises:
        WrongReturn: ``made`` is neither, or returned something else, numbers that are not finite, or probabilities that do not sum to 1.
    """
    task, generates = algorithm.task, algorithm.generates(algorithm.params)
    method: Any = getattr(made, "sample" if generates else "probabilities", None)
    if method is None:
        maker = algorithm.generator if generates else algorithm.classifier
        raise WrongReturn(maker, _described(made), f"an object with {'sample' if generates else 'probabilities'}")
    shape = (len(labels), task.dim) if generates else (len(x), task.classes)
    dtypes = (torch.float32,) if generates else (torch.float32, torch.float64)
    expected = f"{' or '.join(map(_plain, dtypes))} {list(shape)}"
    returned = typed(method, method(labels, stream) if generates else method(x), Tensor, expected, shape)
    if returned.dtype not in dtypes:
        raise WrongReturn(method, _described(returned), expected)
    if returned.requires_grad:
        raise WrongReturn(method, "a tensor with a gradient", "constants: sample and predict under torch.no_grad()")
    if not returned.isfinite().all():
        raise WrongReturn(method, "numbers that are not finite", f"finite {expected}")
    if not generates and ((returned.sum(1) - 1).abs() > 1e-3).any():
        raise WrongReturn(method, "rows that do not sum to 1", f"the probability of every class: {expected}")
    return returned


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return "nothing" if value is None else f"a {type(value).__name__}"
    return f"{_plain(value.dtype)} {list(value.shape)}"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
