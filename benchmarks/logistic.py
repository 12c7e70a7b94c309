"""Write ``Logistic(a, b)``, the synthetic data of DP-SCAFFOLD's paper (arXiv 2111.09278, section 5), as a file with a column ``user``.

User k has rows x ~ N(m_k, diag(j^-1.2)) in 40 dimensions with m_k ~ N(0, 1 + b), and labels argmax(W_k x + c_k) of 10 with entries
~ N(0, 1 + a); one label in 20 is drawn anew. The larger a and b, the less alike are users.

    python benchmarks/logistic.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np

USERS, ROWS, DIM, CLASSES, FLIPPED, TEST = 100, 500, 40, 10, 0.05, 0.2

for spread in (0.0, 1.0, 5.0):
    draw = np.random.default_rng(0)
    spectrum = np.arange(1, DIM + 1) ** -0.6
    x, y = [], []
    for _ in range(USERS):
        weights, bias, mean = ((1 + spread) ** 0.5 * draw.standard_normal(shape) for shape in ((DIM, CLASSES), CLASSES, DIM))
        rows = mean + spectrum * draw.standard_normal((ROWS, DIM))
        labels = (rows @ weights + bias).argmax(1)
        x.append(rows)
        y.append(np.where(draw.random(ROWS) < FLIPPED, draw.integers(CLASSES, size=ROWS), labels))
    split = np.tile(np.where(np.arange(ROWS) < TEST * ROWS, 2, 0), USERS).astype(np.int8)
    columns = {"y": np.concatenate(y), "split": split, "user": np.repeat(np.arange(USERS), ROWS)}
    np.savez(Path(sys.argv[1]) / f"logistic_{spread:g}.npz", x=np.concatenate(x).astype(np.float32), **columns)
