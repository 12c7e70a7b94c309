"""The device that the tests of this folder run on, and how often the host waited for it."""

import os
from typing import Any

import torch

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


if NAME == "xla":
    os.environ.setdefault("PJRT_DEVICE", "CPU")
    # compiled code runs once here
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
    import torch_xla
    import torch_xla.debug.metrics

    DEVICE, waits = torch_xla.device(), Waits(torch_xla)
else:
    DEVICE, waits = torch.device(NAME), Waits()
