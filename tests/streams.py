"""Streams of random numbers for tests."""

import torch


def seeded(seed: int) -> torch.Generator:
    """Return PyTorch's generator with a seed."""
    return torch.Generator().manual_seed(seed)
