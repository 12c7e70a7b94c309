import numpy as np
import pytest
from cells import NODES, small_grid
from sites import SITES, digits_of_sites

from fedsim.errors import UserError
from fedsim.partition.matrix import LabelMatrix
from fedsim.planning.label_matrices import drawn_matrices, label_matrices
from fedsim.planning.prepare import prepare


def test_the_partitions_are_those_that_the_cells_train_on():
    grid = small_grid("fedhypevae", alpha=[0.1, 1.0], seeds=[0, 1], clients=[3, 4])
    shown = {(m.alpha, m.clients, m.seed): m.fingerprint for m in label_matrices(grid)}
    trained = {(t.cell.alpha, t.cell.clients, t.cell.seed): t.partition.fingerprint for t in prepare(grid, NODES).trials}
    assert shown == trained
    assert len(set(shown.values())) == 8


def test_a_scheme_without_alpha_makes_one_partition_for_every_seed():
    (made,) = label_matrices(small_grid("fedhypevae", partition={"scheme": "disjoint"}))
    assert made.alpha is None
    assert ((made.counts > 0).sum(axis=0) == 1).all()


def test_what_the_data_do_not_allow_is_named_with_its_place():
    with pytest.raises(UserError, match=r"clients\[1\]: 101 clients × 2"):
        label_matrices(small_grid("fedhypevae", clients=[4, 101]))
    with pytest.raises(UserError, match=r"partition.column: the data set has no column 'site'"):
        label_matrices(small_grid("fedhypevae", partition={"scheme": "column", "column": "site"}))


def test_with_a_site_unseen_the_partition_is_that_of_the_others(tmp_path):
    grid = small_grid(
        "dp-gaussian",
        dataset={"npz": str(digits_of_sites(tmp_path)), "overlap": "keep"},
        partition={"scheme": "column", "column": "site"},
        clients=len(SITES) - 1,
        evaluation={"per_class": 10, "unseen": "each"},
    )
    shown = [matrix.fingerprint for matrix in label_matrices(grid)]
    assert shown == [trial.partition.fingerprint for trial in prepare(grid, NODES).trials]
    assert len(set(shown)) == len(SITES)
    assert {matrix.dataset for matrix in drawn_matrices(prepare(grid, NODES))} == {matrix.dataset for matrix in label_matrices(grid)}
    assert [matrix.sites for matrix in label_matrices(grid)] == [SITES[1:], (SITES[0], SITES[2]), SITES[:2]]


@pytest.mark.parametrize(
    ("scheme", "clients", "names"), [("column", 3, SITES), ("column-dirichlet", 4, ("north 0", "south 1", "south 2", "west 3"))]
)
def test_clients_by_site_are_called_by_it_with_a_number_where_several_are_of_one(tmp_path, scheme, clients, names):
    dataset = {"npz": str(digits_of_sites(tmp_path)), "overlap": "keep"}
    grid = small_grid("dp-gaussian", dataset=dataset, partition={"scheme": scheme, "column": "site"}, clients=clients)
    (made,), (drawn,) = label_matrices(grid), drawn_matrices(prepare(grid, NODES))
    assert made.sites == drawn.sites == names


def test_a_report_draws_the_partitions_of_the_first_seed():
    grid = small_grid("fedhypevae", "dp-gaussian", alpha=[0.1, 1.0], seeds=[3, 4], epsilon=[1.0, 4.0])
    drawn = drawn_matrices(prepare(grid, NODES))
    assert [(m.alpha, m.seed) for m in drawn] == [(0.1, 3), (1.0, 3)]
    assert {m.fingerprint for m in drawn} <= {m.fingerprint for m in label_matrices(grid)}


def test_entropy_and_number_of_labels_are_of_each_clients_own_rows():
    matrix = LabelMatrix("toy", "iid", None, 2, 0, "0", np.array([[2, 2], [6, 0]]), ("a", "b"))
    assert (matrix.entropy, matrix.labels_per_client, matrix.sizes.tolist()) == (pytest.approx(0.5), 1.5, [4, 6])
