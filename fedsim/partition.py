"""Which rows each client holds: a function of labels, scheme, its parameters and the seed, of nothing else.

So every algorithm and every epsilon of a grid sees the same partition; its fingerprint is in every row of results.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from fedsim.data.embeddings import Embeddings
from fedsim.data.normalise import unit_norm
from fedsim.errors import UserError, nearest
from fedsim.seeds import Purpose, Seeds

_SHIFT_RANK = 8
_DEFAULT_STRENGTH = 0.5


class PartitionSpec(BaseModel):
    """How rows are divided among clients.

    Attributes:
        scheme: one of ``SCHEMES``.
        min_size: the fewest rows that a client may hold.
        column: for scheme ``column``: the data set's column whose values are the clients.
        strength: for scheme ``feature-shift``: size of each client's shift, 0 = none (default there 0.5).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheme: str = "dirichlet"
    min_size: int = Field(default=2, ge=1, strict=True)
    column: str | None = Field(default=None, validate_default=True)
    strength: float = Field(default=0.0, ge=0, allow_inf_nan=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _default_strength(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("scheme") == "feature-shift" and "strength" not in given:
            return {**given, "strength": _DEFAULT_STRENGTH}
        return given

    @field_validator("scheme")
    @classmethod
    def _known_scheme(cls, scheme: str) -> str:
        if scheme not in SCHEMES:
            raise ValueError(f"unknown scheme '{scheme}'; {nearest(scheme, SCHEMES)}")
        return scheme

    @field_validator("column")
    @classmethod
    def _column_fits(cls, column: str | None, info: ValidationInfo) -> str | None:
        scheme = info.data.get("scheme")
        if scheme == "column" and column is None:
            raise ValueError("scheme 'column' needs the name of a column; give column: NAME")
        if scheme not in (None, "column") and column is not None:
            raise ValueError(f"scheme '{scheme}' takes no column; remove it or give scheme: column")
        return column

    @field_validator("strength")
    @classmethod
    def _strength_fits(cls, strength: float, info: ValidationInfo) -> float:
        scheme = info.data.get("scheme")
        if scheme not in (None, "feature-shift") and strength != 0:
            raise ValueError(f"scheme '{scheme}' takes no strength; remove it or give scheme: feature-shift")
        return strength

    @property
    def uses_alpha(self) -> bool:
        """Whether ``alpha`` can change the partition."""
        return self.scheme == "dirichlet"


@dataclass(frozen=True, eq=False)
class Partition:
    """Which rows each client holds.

    Attributes:
        rows: one sorted int64 array of training row numbers per client; disjoint, together all rows.
        fingerprint: 16 hex digits of what the clients hold.
        label_counts: int64 ``[clients, classes]``.
        scheme: the scheme that made it.
    """

    rows: tuple[NDArray[np.int64], ...]
    fingerprint: str
    label_counts: NDArray[np.int64]
    scheme: str


@dataclass(frozen=True)
class Division:
    """What a scheme sees: labels int64 ``[n]``, columns each ``[n]``, the parameters, and its random stream."""

    y: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]]
    spec: PartitionSpec
    alpha: float
    clients: int
    rng: np.random.Generator


def make_partition(
    y: NDArray[np.int64],
    *,
    spec: PartitionSpec,
    alpha: float,
    clients: int,
    seed: int,
    columns: Mapping[str, NDArray[Any]],
) -> Partition:
    """Divide the training rows among clients.

    Args:
        y: labels int64 ``[n]``, 0 .. C-1.
        spec: the scheme and its parameters.
        alpha: concentration of scheme ``dirichlet``, > 0; the other schemes ignore it.
        clients: how many.
        seed: of the partition.
        columns: values per training row, for scheme ``column``.

    Raises:
        UserError: the data do not allow it (see ``check_partition``).
    """
    check_partition(y, spec=spec, clients=clients, columns=columns)
    rng = Seeds(seed).numpy(Purpose.PARTITION)
    owner = SCHEMES[spec.scheme](Division(y, columns, spec, alpha, clients, rng))
    order = np.argsort(owner, kind="stable")
    sizes = np.bincount(owner, minlength=clients)
    rows = tuple(np.split(order, np.cumsum(sizes)[:-1]))
    classes = int(y.max()) + 1
    label_counts = np.bincount(owner * classes + y, minlength=clients * classes).reshape(clients, classes)
    digest = hashlib.sha256(f"{len(y)} {sizes.tolist()}".encode())
    digest.update(order.tobytes())
    if spec.strength > 0:
        digest.update(f"shift {spec.strength!r} {seed}".encode())  # equal rows, other values
    return Partition(rows, digest.hexdigest()[:16], label_counts, spec.scheme)


def check_partition(
    y: NDArray[np.int64],
    *,
    spec: PartitionSpec,
    clients: int,
    columns: Mapping[str, NDArray[Any]],
    place: Callable[[str], str] = str,
) -> None:
    """Check the limits that no partition of these data can escape, before one is made.

    Args:
        y: labels int64 ``[n]``.
        spec: the scheme and its parameters.
        clients: how many.
        columns: values per training row.
        place: the text that names a grid key (``clients``, ``partition.column``) in an error.

    Raises:
        UserError: too few rows, classes or column values for so many clients; no such column.
    """
    if clients < 1:
        raise UserError(place("clients"), f"{clients} is not positive", "give at least 1 client")
    need, least = clients * spec.min_size, f"{spec.min_size} (partition.min_size)"
    if need > len(y):
        arithmetic = f"{clients} clients × {least} = {need} rows, but there are {len(y)} training rows"
        raise UserError(place("clients"), arithmetic, f"give at most {len(y) // spec.min_size} clients")
    if spec.scheme == "disjoint":
        counts = np.bincount(y)
        if clients > len(counts):
            what = f"{clients} clients cannot have disjoint labels with {len(counts)} classes"
            raise UserError(place("clients"), what, f"give at most {len(counts)} clients")
        if counts.min() < spec.min_size:
            what = f"class {counts.argmin()} has {counts.min()} rows, fewer than {least}"
            raise UserError(place("partition.min_size"), what, f"give at most {counts.min()}")
    if spec.scheme == "column":
        _check_column(str(spec.column), spec.min_size, clients, columns, place)


def _check_column(name: str, min_size: int, clients: int, columns: Mapping[str, NDArray[Any]], place: Callable[[str], str]) -> None:
    if name not in columns:
        raise UserError(place("partition.column"), f"the data set has no column '{name}'", nearest(name, columns))
    values, counts = np.unique(columns[name], return_counts=True)
    if len(values) != clients:
        what = f"column '{name}' has {len(values)} values, so {len(values)} clients, not {clients}"
        raise UserError(place("clients"), what, f"give clients: {len(values)}")
    if counts.min() < min_size:
        what = f"value '{values[counts.argmin()]}' of column '{name}' has {counts.min()} rows, fewer than {min_size}"
        raise UserError(place("partition.min_size"), what, f"give at most {counts.min()}")


def _dirichlet(division: Division) -> NDArray[np.int64]:
    """Each class is shared out by its own Dirichlet(alpha) draw over clients (Hsu, Qi and Brown 2019, arXiv 1909.06335)."""
    y, clients, rng = division.y, division.clients, division.rng
    classes = int(y.max()) + 1
    alpha = max(division.alpha, 1e-300)
    # log Gamma(alpha) = log Gamma(alpha + 1) + log U / alpha does not underflow for tiny alpha
    log_gamma = np.log(rng.standard_gamma(alpha + 1, (classes, clients))) + np.log1p(-rng.random((classes, clients))) / alpha
    shares = np.exp(log_gamma - log_gamma.max(axis=1, keepdims=True))
    edges = np.cumsum(shares, axis=1) / shares.sum(axis=1, keepdims=True)
    owner = np.empty(len(y), dtype=np.int64)
    for c in range(classes):
        rows = rng.permutation(np.flatnonzero(y == c))
        ends = np.rint(edges[c, :-1] * len(rows))
        owner[rows] = np.searchsorted(ends, np.arange(len(rows)), side="right")
    return _repaired(owner, division)


def _repaired(owner: NDArray[np.int64], division: Division) -> NDArray[np.int64]:
    """Move random rows, one at a time, from whichever client is the largest to those below the minimum size."""
    sizes = np.bincount(owner, minlength=division.clients).tolist()
    poor = [client for client, size in enumerate(sizes) if size < division.spec.min_size]
    largest = [(-size, client) for client, size in enumerate(sizes)]
    heapq.heapify(largest)
    held: dict[int, list[int]] = {}
    for client in poor:
        for _ in range(division.spec.min_size - sizes[client]):
            # the largest holds more than min_size: there are enough rows for all, and this client has too few
            size, donor = largest[0]
            if donor not in held:
                held[donor] = division.rng.permutation(np.flatnonzero(owner == donor)).tolist()
            owner[held[donor].pop()] = client
            heapq.heapreplace(largest, (size + 1, donor))
    return owner


def _iid(division: Division) -> NDArray[np.int64]:
    """Rows at random, sizes equal to within one."""
    owner: NDArray[np.int64] = division.rng.permutation(np.arange(len(division.y)) % division.clients)
    return owner


def _disjoint(division: Division) -> NDArray[np.int64]:
    """Classes in random order, each whole to the client that has the fewest rows so far."""
    counts = np.bincount(division.y)
    holder = np.zeros(len(counts), dtype=np.int64)
    smallest = [(0, client) for client in range(division.clients)]
    for c in division.rng.permutation(len(counts)):
        size, client = smallest[0]
        holder[c] = client
        heapq.heapreplace(smallest, (size + int(counts[c]), client))
    return holder[division.y]


def _column(division: Division) -> NDArray[np.int64]:
    """The clients are the values of a column, in sorted order."""
    _, owner = np.unique(division.columns[str(division.spec.column)], return_inverse=True)
    return owner.astype(np.int64)


SCHEMES: dict[str, Callable[[Division], NDArray[np.int64]]] = {
    "dirichlet": _dirichlet,
    "iid": _iid,
    "disjoint": _disjoint,
    "column": _column,
    "feature-shift": _iid,
}
"""The schemes by name; each yields the owner int64 ``[n]`` of every training row."""


class Shift(NamedTuple):
    """A client's affine map ``x -> gain * x + (x left) right^T + offset``: gain, offset ``[d]`` and left, right ``[d, r]``, float32."""

    gain: NDArray[np.float32]
    left: NDArray[np.float32]
    right: NDArray[np.float32]
    offset: NDArray[np.float32]


def shift_of(client: int, dim: int, strength: float, seed: int) -> Shift:
    """The feature shift of a client: a random gain for every feature, a random map of rank <= 8, and a random direction.

    Gains are log-normal, ``exp(strength * N(0, 1))``, as of instruments that were calibrated apart, with mean square 1; map and direction
    have norm ``strength``.

    Args:
        client: number from 0.
        dim: number of features d.
        strength: >= 0; 0 is the identity.
        seed: the partition's seed.
    """
    rng = Seeds(seed).numpy(Purpose.FEATURE_SHIFT, 0, client)
    rank = min(_SHIFT_RANK, dim)
    left, right = (np.linalg.qr(rng.standard_normal((dim, rank)))[0] for _ in range(2))
    offset = rng.standard_normal(dim)
    offset /= np.linalg.norm(offset)
    gain = np.exp(strength * rng.standard_normal(dim))
    gain /= np.sqrt(np.mean(gain**2))
    return Shift(
        gain.astype(np.float32), (strength * left).astype(np.float32), right.astype(np.float32), (strength * offset).astype(np.float32)
    )


def apply_shift(x: NDArray[np.float32], client: int, *, strength: float, seed: int) -> NDArray[np.float32]:
    """Shift a client's rows and scale each back to unit norm.

    Args:
        x: float32 ``[n, d]``, unit rows.
        client: number from 0.
        strength: >= 0; at 0 the rows come back unchanged.
        seed: the partition's seed.

    Returns:
        float32 ``[n, d]``.
    """
    if strength == 0:
        return x
    shift = shift_of(client, x.shape[1], strength, seed)
    moved = shift.gain * x + (x @ shift.left) @ shift.right.T + shift.offset
    return unit_norm(moved.astype(np.float32, copy=False))


def shifted(data: Embeddings, partition: Partition, *, strength: float, seed: int) -> Embeddings:
    """The data set as a federation with feature shift sees it: every training row through its owner's map.

    Test rows stand for all clients alike: row i goes through the map of client ``i mod clients``.
    """
    x_train, x_test = data.x_train.copy(), data.x_test.copy()
    clients = len(partition.rows)
    for client, rows in enumerate(partition.rows):
        x_train[rows] = apply_shift(data.x_train[rows], client, strength=strength, seed=seed)
        x_test[client::clients] = apply_shift(data.x_test[client::clients], client, strength=strength, seed=seed)
    return replace(data, x_train=x_train, x_test=x_test)
