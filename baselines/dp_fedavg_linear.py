"""Where the entry point of older installations looks; goes with them."""

from baselines.fedavg_linear import DPFedAvgLinear as DPFedAvgLinear
