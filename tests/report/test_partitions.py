import json
from dataclasses import replace

import numpy as np
import pytest

from fedsim.errors import UserError
from fedsim.partition import PartitionSpec, make_partition
from fedsim.partition.matrix import LabelMatrix, read_partitions, write_partitions
from fedsim.report.partitions import MOST_PANELS, draw_partitions

Y = np.random.default_rng(0).integers(0, 4, 400)


def matrix(clients=5, seed=0, alpha=0.3, scheme="dirichlet"):
    partition = make_partition(Y, spec=PartitionSpec(scheme=scheme), alpha=alpha, clients=clients, seed=seed, columns={})
    names = ("liver", "kidney $1$", "lung", "spleen")
    return LabelMatrix("ct", scheme, alpha, clients, seed, partition.fingerprint, partition.label_counts, names)


def test_matrices_survive_a_file(tmp_path):
    path = tmp_path / "partitions.json"
    assert read_partitions(path) == []
    write_partitions(path, [matrix(), replace(matrix(clients=3), sites=("St. Mary's", "$x$", "[b]c[/b]"))])
    again = read_partitions(path)
    np.testing.assert_array_equal(again[0].counts, matrix().counts)
    assert again[1].names == ("St. Mary's", "$x$", "[b]c[/b]")
    whole = json.loads(path.read_bytes())[0]
    for values in (whole | {"alpha": "x"}, {}, [], "x"):
        path.write_text(json.dumps([values]))
        with pytest.raises(UserError, match="this is not a file of partitions"):
            read_partitions(path)


def test_a_panel_for_every_partition_of_the_first_seed_clients_by_their_names():
    figure = draw_partitions([matrix(alpha=alpha, seed=seed) for alpha in (0.1, 1.0) for seed in (0, 1)])
    assert len([axes for axes in figure.axes if axes.axison]) == 2
    assert len([axes for axes in draw_partitions([matrix()] * 40).axes if axes.axison]) == MOST_PANELS
    (axes,) = draw_partitions([replace(matrix(clients=3), sites=("a", "$x$", "b"))]).axes
    assert tuple(label.get_text() for label in axes.get_xticklabels()) == ("a", "$x$", "b")
    assert draw_partitions([]) is None
