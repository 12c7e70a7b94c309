"""Where the entry point of older installations looks; goes with them."""

from baselines.fedpft import DPFedPFT as DPFedPFT
