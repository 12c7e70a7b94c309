import numpy as np
import pytest

from fedsim.data.embeddings import Embeddings
from fedsim.evaluation import subset
from fedsim.evaluation.subset import (
    balanced_rows,
    client_rows,
    client_step,
    most_per_client,
    own_rows_among,
)
from fedsim.partition import Partition, PartitionSpec, make_partition

CLASSES = 4
UNEQUAL = np.repeat(np.arange(CLASSES), [500, 50, 5, 45])


def data_of(y: np.ndarray) -> Embeddings:
    """Rows that are their own numbers, both in training and in the test."""
    x = np.arange(len(y), dtype=np.float32)[:, None]
    return Embeddings("numbers", x, y, x, y, classes=CLASSES)


def partition_of(y: np.ndarray, spec: PartitionSpec | None = None) -> Partition:
    return make_partition(
        y,
        spec=spec or PartitionSpec(),
        alpha=1.0,
        clients=3,
        seed=0,
        columns={},
    )


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 60 training rows."""
    monkeypatch.setattr(subset, "MOST_TRAIN_ROWS", 60)


def test_all_rows_are_chosen_if_there_are_no_more_than_the_most() -> None:
    assert balanced_rows(UNEQUAL, len(UNEQUAL)).tolist() == list(range(len(UNEQUAL)))


def test_chosen_rows_have_classes_as_equal_as_possible() -> None:
    rows = balanced_rows(UNEQUAL, 100)
    assert np.bincount(UNEQUAL[rows]).tolist() == [31, 31, 5, 31]


def test_chosen_rows_are_ascending_and_the_same_at_every_call() -> None:
    rows = balanced_rows(UNEQUAL, 100)
    assert (np.diff(rows) > 0).all()
    assert (rows == balanced_rows(UNEQUAL, 100)).all()


def test_every_class_keeps_a_row_even_if_there_are_more_classes_than_rows() -> None:
    assert np.bincount(UNEQUAL[balanced_rows(UNEQUAL, 2)]).tolist() == [1, 1, 1, 1]


def test_clients_of_small_data_keep_their_rows_in_their_order() -> None:
    partition = partition_of(UNEQUAL)
    kept = client_rows(data_of(UNEQUAL), partition)
    for rows, of_client in zip(kept, partition.rows, strict=True):
        assert rows.tolist() == of_client.tolist()


def test_clients_of_large_data_keep_a_row_of_each_class(few_rows: None) -> None:
    partition = partition_of(UNEQUAL)
    kept = client_rows(data_of(UNEQUAL), partition)
    assert sum(map(len, kept)) <= 60
    for rows, of_client in zip(kept, partition.rows, strict=True):
        assert set(rows) <= set(of_client)
        assert set(UNEQUAL[rows]) == set(UNEQUAL[of_client])


def test_many_clients_and_classes_are_scored_on_fewer_rows() -> None:
    assert most_per_client(clients=100, classes=100) == 20_000
    assert most_per_client(clients=100, classes=1_000) == 5_000


def test_own_rows_of_a_choice_are_those_that_the_client_sees() -> None:
    spec = PartitionSpec(scheme="feature-shift")
    data = data_of(UNEQUAL)
    chosen = balanced_rows(UNEQUAL, 100)
    own = own_rows_among(chosen, data, partition_of(UNEQUAL, spec), spec)
    for client, places in enumerate(own.rows):
        assert (chosen[places] % 3 == client).all()
    assert sum(map(len, own.rows)) == len(chosen)
    assert own.words.endswith(f"among {len(chosen)} of 600 with classes as equal as possible")


def test_few_clients_with_few_classes_all_have_a_probe() -> None:
    assert client_step(partition_of(UNEQUAL)) == 1


def test_of_many_clients_with_many_classes_few_have_a_probe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    partition = partition_of(UNEQUAL)
    monkeypatch.setattr(subset, "MOST_LOCAL_SCORES", 30)
    assert client_step(partition) == 2
    kept = client_rows(data_of(UNEQUAL), partition)
    assert [rows.tolist() for rows in kept] == [
        partition.rows[client].tolist() for client in (0, 2)
    ]
