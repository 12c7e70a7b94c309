"""Where the entry point of older installations looks; goes with them."""

from baselines.probes import LocalOnlyLinear as LocalOnlyLinear
