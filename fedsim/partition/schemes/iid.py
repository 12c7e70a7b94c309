"""Clients alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.partition.schemes.scheme import Division, Integers, Scheme


def iid(division: Division[Any], rng: np.random.Generator) -> Integers:
    """Rows at random, sizes equal to within one."""
    owner: Integers = rng.permutation(np.arange(len(division.y)) % division.clients)
    return owner


IID = Scheme(iid)
