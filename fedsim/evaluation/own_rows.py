"""Which test rows a client is judged on: those of its site, those that it sees, or all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsim.data.embeddings import Embeddings
from fedsim.partition import SCHEMES, Partition, PartitionSpec
from fedsim.partition.schemes.scheme import own_test_rows


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
    scheme, clients = SCHEMES[spec.scheme], range(len(partition.rows))
    numbers, every = tuple(map(str, clients)), np.arange(len(data.y_test))
    if (column := spec.given.site_column) is not None:
        sites = tuple(str(data.columns[column][rows[0]]) for rows in partition.rows)
        test_sites = data.test_columns[column].astype(np.str_)
        names = sites if len(set(sites)) == len(sites) else tuple(f"{site} {client}" for site, client in zip(sites, numbers, strict=True))
        nobodys = np.count_nonzero(~np.isin(test_sites, sites))
        words = f"the test rows with its {column}" + (f"; {nobodys} test rows are of no client's {column}" if nobodys else "")
        return OwnRows(names, tuple(np.flatnonzero(test_sites == site) for site in sites), words)
    if scheme.map_rows is not None:
        own = tuple(every[own_test_rows(client, len(clients))] for client in clients)
        return OwnRows(numbers, own, f"every {len(clients)}th test row, as the client sees it")
    return OwnRows(numbers, (every,) * len(clients), "all test rows")
