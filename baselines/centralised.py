"""Where the entry point of older installations looks; goes with them."""

from baselines.probes import Centralised as Centralised
