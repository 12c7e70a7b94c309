import pytest
from cells import NODES, small_grid
from sites import SITES, digits_of_sites

from fedsim.planning.label_matrices import drawn_matrices
from fedsim.planning.prepare import prepare


@pytest.mark.parametrize(
    ("scheme", "clients", "names"), [("column", 3, SITES), ("column-dirichlet", 4, ("north 0", "south 1", "south 2", "west 3"))]
)
def test_clients_by_site_are_called_by_it_with_a_number_where_several_are_of_one(tmp_path, scheme, clients, names):
    dataset = {"npz": str(digits_of_sites(tmp_path)), "overlap": "keep"}
    grid = small_grid("dp-gaussian", dataset=dataset, partition={"scheme": scheme, "column": "site"}, clients=clients)
    (drawn,) = drawn_matrices(prepare(grid, NODES))
    assert drawn.sites == names


def test_a_report_draws_the_partitions_of_the_first_seed():
    grid = small_grid("fedhypevae", "dp-gaussian", alpha=[0.1, 1.0], seeds=[3, 4], epsilon=[1.0, 4.0])
    drawn = drawn_matrices(prepare(grid, NODES))
    assert [(m.alpha, m.seed) for m in drawn] == [(0.1, 3), (1.0, 3)]
