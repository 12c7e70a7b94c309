"""Rows that stay together: a client holds all rows of a group or none."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import UserError
from fedsim.partition import Partition, PartitionSpec, make_partition, with_validation
from fedsim.partition.partition import divisible_parts

LESIONS = np.sort(np.random.default_rng(0).integers(0, 400, 900))
SITES = np.array(["north", "south"])[LESIONS % 2]
LABELS = LESIONS % 5


def partition(
    y: np.ndarray = LABELS,
    clients: int = 6,
    seed: int = 0,
    columns: dict[str, np.ndarray] | None = None,
    **spec: Any,
) -> Partition:
    return make_partition(
        y,
        spec=PartitionSpec(together="lesion", **spec),
        alpha=0.3,
        clients=clients,
        seed=seed,
        columns=columns or {"lesion": LESIONS, "site": SITES},
    )


@settings(max_examples=40)
@given(
    spec=st.sampled_from(
        [
            {"scheme": "iid"},
            {"scheme": "dirichlet"},
            {"scheme": "dirichlet-client"},
            {"scheme": "quantity"},
            {"scheme": "shards", "labels": 3},
            {"scheme": "column-dirichlet", "column": "site"},
        ]
    ),
    order=st.integers(0, 9),
    seed=st.integers(0, 2**40),
)
def test_a_client_holds_all_rows_of_a_group_or_none(
    spec: dict[str, Any], order: int, seed: int
) -> None:
    mixed = np.random.default_rng(order).permutation(len(LESIONS))
    columns = {"lesion": LESIONS[mixed], "site": SITES[mixed]}
    made = partition(LABELS[mixed], seed=seed, columns=columns, **spec)
    lesions_of_clients = [set(columns["lesion"][rows]) for rows in made.rows]
    assert sorted(np.concatenate(made.rows)) == list(range(len(mixed)))
    assert sum(map(len, lesions_of_clients)) == len(set(LESIONS))
    assert made.groups is not None
    for rows, groups in zip(made.rows, made.groups, strict=True):
        # Groups are numbered in order, and one number is one lesion.
        lesions = columns["lesion"][rows]
        assert np.all(np.diff(groups) >= 0)
        assert np.all((np.diff(groups) == 1) == (np.diff(lesions) != 0))


def test_a_group_has_its_most_frequent_lowest_label() -> None:
    y = np.array([2, 2, 0, 3, 1, 1, 3])
    lesion = np.array(["a", "a", "a", "b", "b", "c", "c"])
    labels, _, _ = divisible_parts(
        y,
        {"lesion": lesion},
        PartitionSpec(together="lesion"),
    )
    assert labels.tolist() == [2, 1, 1]


@pytest.mark.parametrize("absent", [1, 4])
@pytest.mark.parametrize(("scheme", "labels_of_client"), [("disjoint", 1), ("shards", 2)])
def test_a_class_that_is_no_groups_label_takes_no_clients_place(
    scheme: str, labels_of_client: int, absent: int
) -> None:
    rare = np.equal(LABELS, absent)
    y = np.where(rare, (absent + 1) % 4, LABELS)
    in_large_group = np.bincount(LESIONS)[LESIONS] > 2
    y[np.flatnonzero(rare & in_large_group)[0]] = absent
    spec = PartitionSpec(together="lesion")
    labels, _, part = divisible_parts(y, {"lesion": LESIONS}, spec)
    assert absent in y
    assert absent not in labels
    for rows in partition(y, clients=4, scheme=scheme).rows:
        assert len(set(labels[part[rows]])) == labels_of_client


def test_the_minimum_size_counts_groups() -> None:
    groups = partition(min_size=30).groups
    assert groups is not None
    assert min(len(set(numbers)) for numbers in groups) >= 30


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"min_size": 100},
            r"6 clients × 100 \(partition.min_size\) = 600 different values of lesion, but "
            "there are only 355 for training",
        ),
        (
            {"scheme": "disjoint", "clients": 5, "min_size": 71},
            "is 71, but the number of different values of lesion of class 4 is 67",
        ),
        (
            {"scheme": "shards", "labels": 1, "clients": 5, "min_size": 71},
            "leaves client 0 with 69 different values of lesion, fewer than 71",
        ),
        (
            {"scheme": "column", "column": "site", "clients": 2, "min_size": 177},
            "'south' of column 'site' has 176 different values of lesion for 1 clients of 177",
        ),
    ],
)
def test_messages_about_the_minimum_size_count_groups(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        partition(**keys)


@pytest.mark.parametrize(
    ("columns", "keys", "message"),
    [
        ({"patient": LESIONS}, {}, "no column 'lesion'; known: patient"),
        (
            {"lesion": np.where(LESIONS < 3, "", LESIONS.astype(np.str_))},
            {},
            "rows have no value of 'lesion'; give every row one",
        ),
        (
            {"lesion": LESIONS, "site": np.tile(["north", "south"], 450)},
            {"scheme": "column", "column": "site", "clients": 2},
            "has rows with different values of site, and these",
        ),
    ],
)
def test_a_column_that_does_not_group_rows_is_reported(
    columns: dict[str, np.ndarray], keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        partition(columns=columns, **keys)
    assert caught.value.where == "partition.together"


def test_a_group_is_in_training_or_in_validation() -> None:
    made = with_validation(partition())
    for training, validation in zip(made.rows, made.validation, strict=True):
        assert len(validation) > 0
        assert not np.intersect1d(LESIONS[training], LESIONS[validation]).size


def test_groups_that_are_left_in_training_are_numbered_anew() -> None:
    made = with_validation(partition())
    assert made.groups is not None
    for rows, groups in zip(made.rows, made.groups, strict=True):
        lesions, numbers = np.unique(LESIONS[rows], return_inverse=True)
        assert len(lesions) == groups.max() + 1
        np.testing.assert_array_equal(groups, numbers)
