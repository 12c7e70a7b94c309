import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedsim.data.embeddings import Embeddings, unit_norm
from fedsim.errors import UserError
from fedsim.partition import PartitionSpec, as_seen, make_partition, schemes, with_validation
from fedsim.partition.partition import apply_shift, shift_of

LABELS = np.random.default_rng(0).integers(0, 10, 3_000)
SITES = {"site": np.random.default_rng(1).choice(["north", "south", "west"], 3_000)}


def partition(
    y=LABELS,
    scheme="dirichlet",
    alpha=0.3,
    clients=10,
    seed=0,
    columns=SITES,
    **spec,
):
    return make_partition(
        y,
        spec=PartitionSpec(scheme=scheme, **spec),
        alpha=alpha,
        clients=clients,
        seed=seed,
        columns=columns,
    )


@st.composite
def divisions(draw):
    """Arguments of a partition that the data allow, of any scheme."""
    scheme = draw(st.sampled_from(sorted(schemes.OWNERS)))
    classes = draw(st.integers(2, 6))
    min_size = draw(st.integers(1, 4))
    keys = {"scheme": scheme, "min_size": min_size}
    most_clients = 12
    if scheme == "disjoint":
        most_clients = classes
    clients = draw(st.integers(1, most_clients))
    fewest = min_size
    if scheme == "shards":
        keys["labels"] = draw(st.integers(-(-classes // clients), classes))
        fewest = clients * min_size
    sizes = st.lists(
        st.integers(fewest, fewest + 16),
        min_size=classes,
        max_size=classes,
    )
    y = np.repeat(np.arange(classes), draw(sizes))
    missing = max(0, clients * min_size - len(y))
    y = np.random.default_rng(draw(st.integers(0, 9))).permutation(np.append(y, [0] * missing))
    values = draw(st.sampled_from([1, clients]))
    if scheme == "column":
        values = clients
    if scheme.startswith("column"):
        keys["column"] = "site"
    if scheme == "quantity":
        keys["power"] = draw(st.floats(0, 5))
    return keys | {
        "y": y.astype(np.int64),
        "clients": clients,
        "alpha": draw(st.floats(1e-300, 1e6)),
        "seed": draw(st.integers(0, 2**40)),
        "columns": {"site": np.arange(len(y)) % values},
    }


@settings(max_examples=150)
@given(divisions())
def test_partition_is_complete_large_enough_and_repeatable(keys):
    y = keys["y"]
    made = partition(**keys)
    assert len(made.rows) == keys["clients"]
    assert sorted(np.concatenate(made.rows)) == list(range(len(y)))
    assert partition(**keys).fingerprint == made.fingerprint
    for rows, counts in zip(made.rows, made.label_counts, strict=True):
        assert len(rows) >= keys["min_size"]
        assert np.all(np.diff(rows) > 0)
        assert rows.dtype == np.int64
        np.testing.assert_array_equal(
            counts,
            np.bincount(y[rows], minlength=y.max() + 1),
        )


def test_different_partitions_have_different_fingerprints():
    made = [
        partition(),
        partition(alpha=0.31),
        partition(clients=11),
        partition(scheme="iid"),
        partition(scheme="feature-shift", strength=0.5),
        partition(scheme="feature-shift", strength=0.6),
    ]
    assert len({each.fingerprint for each in made}) == len(made)


def largest_share(alpha):
    """Mean over classes of the share that the class's largest holder has."""
    counts = partition(alpha=alpha).label_counts
    return float((counts.max(axis=0) / counts.sum(axis=0)).mean())


def test_small_alpha_concentrates_classes_and_large_spreads():
    assert largest_share(1e-6) > 0.98
    assert largest_share(1e-6) > largest_share(0.3) > largest_share(1.0) > largest_share(1e6)
    assert largest_share(1e6) == pytest.approx(0.1, abs=0.005)


@pytest.mark.parametrize(
    "keys",
    [
        {"scheme": "dirichlet"},
        {"scheme": "dirichlet-client"},
        {"scheme": "shards", "labels": 10},
        {"scheme": "iid"},
        {"scheme": "quantity"},
    ],
)
def test_which_rows_of_a_class_a_client_holds_is_random(keys):
    first, second = partition(clients=2, alpha=1e6, **keys).rows
    assert abs(first.mean() - second.mean()) < 150


def test_dirichlet_shares_have_the_distribution_they_claim():
    alpha = 0.5
    clients = 4
    shares = []
    for seed in range(200):
        counts = partition(alpha=alpha, clients=clients, seed=seed, min_size=1).label_counts
        shares.append(counts / counts.sum(axis=0))
    # Dirichlet(alpha, ..., alpha) over k has mean 1/k and variance
    # (1/k)(1 - 1/k) / (k alpha + 1).
    mean = 1 / clients
    variance = mean * (1 - mean) / (clients * alpha + 1)
    assert np.mean(shares) == pytest.approx(mean)
    assert np.var(shares) == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("alpha", [1e-3, 1e6])
def test_dirichlet_client_gives_equal_sizes(alpha):
    counts = partition(scheme="dirichlet-client", alpha=alpha).label_counts
    assert set(counts.sum(axis=1)) == {300}


def test_dirichlet_client_gives_each_client_its_own_mix():
    # Clients that choose early get a single label; late ones take what is left.
    concentrated = partition(scheme="dirichlet-client", alpha=1e-3).label_counts
    spread = partition(scheme="dirichlet-client", alpha=1e6).label_counts
    assert np.median(concentrated.max(axis=1)) > 0.9 * 300
    assert spread.max() < 0.25 * 300


@pytest.mark.parametrize(("labels", "clients"), [(1, 10), (2, 7), (3, 50), (10, 4)])
def test_every_client_of_shards_holds_exactly_so_many_labels(labels, clients):
    counts = partition(scheme="shards", labels=labels, clients=clients).label_counts
    assert ((counts > 0).sum(axis=1) == labels).all()
    assert (counts > 0).any(axis=0).all()


SMALL_CLASS = np.repeat(np.arange(3), [40, 40, 3])


def test_shards_that_are_too_small_take_rows_of_their_own_labels():
    made = partition(
        y=SMALL_CLASS,
        scheme="shards",
        labels=1,
        clients=4,
        min_size=3,
    )
    assert made.label_counts.sum(axis=1).min() >= 3


def test_shards_that_cannot_be_filled_are_reported():
    problem = (
        r"partition.min_size: scheme 'shards' leaves client \d with 3 rows, fewer than 4; "
        "give a smaller"
    )
    with pytest.raises(UserError, match=problem):
        partition(y=SMALL_CLASS, scheme="shards", labels=1, clients=4, min_size=4)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_quantity_sizes_follow_the_power_law(power):
    made = partition(scheme="quantity", clients=20, power=power, min_size=2)
    sizes = np.sort([len(rows) for rows in made.rows])[::-1]
    weights = np.arange(1, 21) ** -power
    expected = 2 + 2_960 * weights / weights.sum()
    np.testing.assert_allclose(sizes, expected, atol=1)


@pytest.mark.parametrize("clients", [1, 3, 10])
def test_disjoint_clients_share_no_label(clients):
    counts = partition(scheme="disjoint", clients=clients).label_counts
    assert ((counts > 0).sum(axis=0) == 1).all()
    assert ((counts > 0).sum(axis=1) >= 1).all()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"clients": 1_501},
            r"clients: 1501 clients × 2 \(partition.min_size\) = 3002 rows, but there are "
            r"only 3000 .*; give at most 1500",
        ),
        (
            {"scheme": "disjoint", "clients": 11},
            "11 clients cannot have disjoint labels with 10 classes",
        ),
        (
            {"scheme": "disjoint", "y": np.array([0] * 20 + [1]), "clients": 2},
            "partition.min_size: is 2, but the number of rows of class 1 is 1",
        ),
        (
            {"scheme": "column", "column": "sight", "clients": 3},
            "partition.column: .*no column 'sight'; did you mean 'site'",
        ),
        (
            {"scheme": "column", "column": "site", "clients": 4},
            "needs one client for each of the 3 values of column 'site'; give clients: 3",
        ),
        (
            {"scheme": "shards", "labels": 11},
            "partition.labels: 10 clients × 11 labels = 110 shards do not fit .*; give at "
            "least 1 and at most 10",
        ),
        (
            {"scheme": "shards", "labels": 2, "clients": 4},
            "= 8 shards do not fit the sizes of 10 classes; give at least 3",
        ),
        (
            {"scheme": "shards", "labels": 2, "y": np.array([0] * 40 + [1]), "clients": 3},
            "= 6 shards do not fit the sizes of 2 classes; give at least 1 and at most 1",
        ),
    ],
)
def test_limits_are_named_with_their_arithmetic(keys, message):
    with pytest.raises(UserError, match=message):
        partition(**keys)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"scheme": "column"}, "needs the name of a column"),
        ({"scheme": "iid", "column": "site"}, "takes no column"),
        ({"scheme": "iid", "power": 2.0}, "takes no power; remove it or give scheme: quantity"),
    ],
)
def test_a_wrong_spec_is_refused(spec, message):
    with pytest.raises(ValidationError, match=message):
        PartitionSpec(**spec)


def test_a_shift_is_the_affine_map_it_claims():
    x = unit_norm(np.random.default_rng(2).standard_normal((20, 64)).astype(np.float32))
    gain, left, right, offset = (part.astype(np.float64) for part in shift_of(3, 64, 0.5, 7))
    moved = x @ (np.diag(gain) + left @ right.T) + offset
    expected = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    shifted = apply_shift(x, 3, strength=0.5, seed=7)
    np.testing.assert_allclose(shifted, expected, atol=1e-6)


def test_shift_is_orthonormal_and_has_the_given_strength():
    gain, left, right, offset = shift_of(0, 1280, 0.5, 0)
    assert np.log(gain).std() == pytest.approx(0.5, rel=0.1)
    assert np.mean(gain**2) == pytest.approx(1)
    np.testing.assert_allclose(left.T @ left, 0.25 * np.eye(8), atol=1e-5)
    np.testing.assert_allclose(right.T @ right, np.eye(8), atol=1e-5)
    assert np.linalg.norm(offset) == pytest.approx(0.5, rel=1e-5)


def test_feature_shift_applies_the_owners_map():
    x = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
    split = np.repeat([0, 2], [40, 20])
    data = Embeddings.from_arrays("made up", unit_norm(x), np.arange(60) % 3, split)
    made = with_validation(
        partition(
            data.y_train,
            "feature-shift",
            clients=4,
            seed=1,
            columns={},
            strength=0.4,
        )
    )
    spec = PartitionSpec(scheme="feature-shift", strength=0.4)
    seen = as_seen(data, made, spec, seed=1)
    for client, rows in enumerate(made.all_rows):
        x_train = apply_shift(data.x_train[rows], client, strength=0.4, seed=1)
        x_test = apply_shift(data.x_test[client::4], client, strength=0.4, seed=1)
        np.testing.assert_array_equal(seen.x_train[rows], x_train)
        np.testing.assert_array_equal(seen.x_test[client::4], x_test)
    np.testing.assert_allclose(np.linalg.norm(seen.x_train, axis=1), 1, atol=1e-5)
    assert not np.allclose(seen.x_train, data.x_train, atol=0.05)


def test_validation_takes_every_fifth_example_of_a_client():
    whole = partition(LABELS[:60])
    made = with_validation(whole)
    assert min(map(len, whole.rows)) < 5
    for client, rows in enumerate(whole.rows):
        validation = made.validation[client]
        np.testing.assert_array_equal(validation, rows[4::5])
        np.testing.assert_array_equal(made.rows[client], np.setdiff1d(rows, validation))
        np.testing.assert_array_equal(np.sort(made.all_rows[client]), rows)


def test_validation_changes_the_fingerprint():
    assert with_validation(partition()).fingerprint != partition().fingerprint
