"""Which test rows a client is judged on: those of its site, those that it sees, or all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim.data.embeddings import Embeddings
from fedsim.partition.partition import Partition
from fedsim.partition.spec import PartitionSpec


@dataclass(frozen=True, eq=False)
class OwnRows:
    """The clients' test rows.

    Attributes:
        names: what each client is called: its site, or its number.
        rows: the test rows int64 that each is judged on; none for a site that has none.
        words: the same in words, for a row of results.
    """

    names: tuple[str, ...]
    rows: tuple[NDArray[np.int64], ...]
    words: str


def own_rows(data: Embeddings, partition: Partition, spec: PartitionSpec) -> OwnRows:
    """The test rows of the client's site, under a scheme with sites; those that it sees, where it sees values of its own; else all."""
    clients, every = len(partition.rows), np.arange(len(data.y_test))
    names = site_names(data, partition, spec)
    if spec.column is not None:
        sites = _sites(data, partition, spec.column)
        test_sites = data.test_columns[spec.column].astype(np.str_)
        nobodys = np.count_nonzero(~np.isin(test_sites, sites))
        words = f"the test rows with its {spec.column}" + (f"; {nobodys} test rows are of no client's {spec.column}" if nobodys else "")
        return OwnRows(names, tuple(np.flatnonzero(test_sites == site) for site in sites), words)
    names = names or tuple(map(str, range(clients)))
    if spec.shifts:
        return OwnRows(
            names, tuple(every[client::clients] for client in range(clients)), f"every {clients}th test row, as the client sees it"
        )
    return OwnRows(names, (every,) * clients, "all test rows")


def site_names(data: Embeddings, partition: Partition, spec: PartitionSpec) -> tuple[str, ...]:
    """Every client's site, with its number where several are of one site; empty under a scheme without sites."""
    if spec.column is None:
        return ()
    sites = _sites(data, partition, spec.column)
    return tuple(sites) if len(set(sites)) == len(sites) else tuple(f"{site} {client}" for client, site in enumerate(sites))


def _sites(data: Embeddings, partition: Partition, column: str) -> list[str]:
    return [str(data.columns[column][rows[0]]) for rows in partition.rows]
