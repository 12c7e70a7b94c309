"""Where the entry point of older installations looks; goes with them."""

from baselines.ditto import DPDitto as DPDitto
