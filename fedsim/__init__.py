"""fedsim: federated generative algorithms side by side, under identical partitions and honest differential privacy."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fedsim")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
