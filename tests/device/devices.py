"""The device that the tests of this folder run on, and how often the host waited for it."""

import os
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

NAME = os.environ.get("FEDSIM_TEST_DEVICE", "cpu")


class Waits:
    """Copies from the device to the host, where the device counts them."""

    counted = NAME == "xla"

    def __init__(self, xla: Any = None) -> None:
        self.xla = xla

    def flush(self) -> None:
        """Let a lazy device compute all that was asked of it."""
        if self.xla is not None:
            self.xla.sync()

    def forget(self) -> None:
        """Count from here."""
        self.xla.debug.metrics.clear_all()

    def count(self) -> int:
        """Copies since :meth:`forget`; an operation that the device lacks goes by the CPU, and counts too."""
        metrics = self.xla.debug.metrics
        return int((metrics.metric_data("TransferFromDeviceTime") or [0])[0])


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
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
    import torch_xla
    import torch_xla.debug.metrics

    DEVICE, waits = torch_xla.device(), Waits(torch_xla)
else:
    DEVICE, waits = torch.device(NAME), Waits()
