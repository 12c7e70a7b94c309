"""The device that the tests of this folder run on."""

import os
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

NAME = os.environ.get("FEDSIM_TEST_DEVICE", "cpu")


def flush() -> None:
    """Let a lazy device compute all that was asked of it."""
    if NAME == "xla":
        torch_xla.sync()


MOVES = ("to", "copy_", "cpu", "__get__", "__set__", "_has_compatible_shallow_copy_type")
"""Functions that move a tensor from one device to another, or ask whether they may."""


class OnePlace(TorchFunctionMode):
    """CUDA's rule wherever a test runs: a function's tensors are on one device, but for numbers.

    XLA refuses a CPU tensor in products and indices alone; elementwise it takes it along.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        places = {each.device.type for each in tensors if each.dim() or each.device.type != "cpu"}
        if len(places) > 1 and getattr(func, "__name__", "") not in MOVES:
            raise RuntimeError(f"{func} of tensors on {' and '.join(sorted(places))}")
        return func(*args, **(kwargs or {}))


if NAME == "xla":
    os.environ.setdefault("PJRT_DEVICE", "CPU")
    # compiled code runs once here
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
    import torch_xla

DEVICE = torch_xla.device() if NAME == "xla" else torch.device(NAME)
