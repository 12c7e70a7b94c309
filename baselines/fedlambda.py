"""Where the entry point of older installations looks; goes with them."""

from baselines.probes import FedLambda as FedLambda
