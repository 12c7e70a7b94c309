"""Where the entry point of older installations looks; goes with them."""

from baselines.dp_gaussian import DPLeastSquares as DPLeastSquares
