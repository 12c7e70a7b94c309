"""Rows that stay together: what schemes divide are groups, and a client holds all rows of a group
or none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import UserError
from fedsim.partition import Partition, PartitionSpec, make_partition
from fedsim.partition.partition import check_split, divisible_parts

RNG = np.random.default_rng(0)
LESIONS = np.sort(RNG.integers(0, 400, 900))
SITE = np.array(["north", "south"])[LESIONS % 2]
LABELS = LESIONS % 5


def partition(
    columns: dict[str, np.ndarray],
    scheme: str = "dirichlet",
    clients: int = 6,
    seed: int = 0,
    **spec: Any,
) -> Partition:
    given_ = PartitionSpec(scheme=scheme, together="lesion", **spec)
    return make_partition(
        LABELS, spec=given_, alpha=0.3, clients=clients, seed=seed, columns=columns
    )


@settings(max_examples=40)
@given(
    scheme=st.sampled_from(
        ["iid", "dirichlet", "dirichlet-client", "quantity", "shards", "column-dirichlet"]
    ),
    order=st.integers(0, 9),
    seed=st.integers(0, 2**40),
)
def test_a_client_holds_all_rows_of_a_group_or_none(scheme: str, order: int, seed: int) -> None:
    mixed = np.random.default_rng(order).permutation(len(LESIONS))
    lesion = LESIONS[mixed].astype(np.str_)
    site = SITE[mixed]
    y = LABELS[mixed]
    own: dict[str, Any] = {
        "shards": {"labels": 3},
        "quantity": {"power": 1.0},
        "column-dirichlet": {"column": "site"},
    }
    spec = PartitionSpec(scheme=scheme, together="lesion", **own.get(scheme, {}))
    made = make_partition(
        y, spec=spec, alpha=0.3, clients=6, seed=seed, columns={"lesion": lesion, "site": site}
    )
    assert sorted(np.concatenate(made.rows).tolist()) == list(range(len(y)))
    held = [set(lesion[rows].tolist()) for rows in made.rows]
    assert sum(map(len, held)) == len(set(lesion.tolist()))
    for rows, groups in zip(made.rows, made.groups, strict=True):
        assert np.all(np.diff(groups) >= 0)
        assert set(groups.tolist()) == set(range(len(set(lesion[rows].tolist()))))
        # one number, one lesion
        assert len(
            {
                (group, name)
                for group, name in zip(groups.tolist(), lesion[rows].tolist(), strict=True)
            }
        ) == len(set(groups.tolist()))


def test_group_has_its_most_frequent_lowest_label() -> None:
    y = np.array([2, 2, 0, 3, 1, 1, 3])
    lesion = np.array(["a", "a", "a", "b", "b", "c", "c"])
    assert divisible_parts(y, {"lesion": lesion}, PartitionSpec(together="lesion"))[0].tolist() == [
        2,
        1,
        1,
    ]


@pytest.mark.parametrize("absent", [1, 4])
@pytest.mark.parametrize(("scheme", "own"), [("disjoint", {}), ("shards", {"labels": 2})])
def test_a_class_that_is_no_groups_takes_no_clients_place(
    scheme: str, own: dict[str, Any], absent: int
) -> None:
    rare = np.equal(LABELS, absent)
    y = np.where(rare, (absent + 1) % 4, LABELS)
    y[np.flatnonzero(rare & (np.bincount(LESIONS)[LESIONS] > 2))[0]] = absent
    spec = PartitionSpec(scheme=scheme, together="lesion", **own)
    labels, _, part = divisible_parts(y, {"lesion": LESIONS}, spec)
    assert absent in y
    assert absent not in labels
    made = make_partition(y, spec=spec, alpha=0.3, clients=4, seed=0, columns={"lesion": LESIONS})
    held = [set(labels[part[rows]].tolist()) for rows in made.rows]
    assert [len(labels) for labels in held] == [1 if scheme == "disjoint" else 2] * 4


def test_the_minimum_size_counts_groups() -> None:
    made = partition({"lesion": LESIONS}, min_size=30)
    assert min(int(groups[-1]) + 1 for groups in made.groups) >= 30
    with pytest.raises(
        UserError,
        match=r"6 clients × 100 \(partition.min_size\) = 600 values of lesion, but there are \d+ "
        r"training values",
    ):
        partition({"lesion": LESIONS}, min_size=100)


@pytest.mark.parametrize(
    ("columns", "spec", "said"),
    [
        ({"patient": LESIONS}, {}, "no column 'lesion'; known: patient"),
        (
            {"lesion": np.where(LESIONS < 3, "", LESIONS.astype(np.str_))},
            {},
            "rows have no value of 'lesion'; give every row one",
        ),
        (
            {"lesion": LESIONS, "site": np.array(["north", "south"])[np.arange(900) % 2]},
            {"scheme": "column", "column": "site", "clients": 2},
            "has rows of two values of site, so of two clients; keep a group within a client",
        ),
    ],
)
def test_a_column_that_does_not_group_rows_is_reported(
    columns: dict[str, np.ndarray], spec: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        partition(columns, **spec)
    assert caught.value.where == "partition.together"


def test_a_group_on_both_sides_of_the_split_is_reported() -> None:
    check_split("lesion", {"lesion": np.array(["a", "b", "b"])}, {"lesion": np.array(["c"])})
    with pytest.raises(
        UserError,
        match="1 values of lesion have both training and test rows, such as 'b'; give the data a "
        "split",
    ):
        check_split(
            "lesion", {"lesion": np.array(["a", "b", "b"])}, {"lesion": np.array(["b", "c"])}
        )
