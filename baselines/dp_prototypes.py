"""Where the entry point of older installations looks; goes with them."""

from baselines.dp_gaussian import DPPrototypes as DPPrototypes
