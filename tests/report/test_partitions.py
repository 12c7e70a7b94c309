import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fedsim.errors import UserError
from fedsim.partition import PartitionSpec, make_partition
from fedsim.partition.matrix import LabelMatrix, read_partitions, write_partitions
from fedsim.report.figures import drawn, save_figure, svg_text
from fedsim.report.partitions import (
    MOST_PANELS,
    draw_partitions,
    label_table,
    summary_table,
    title,
)

Y = np.random.default_rng(0).integers(0, 4, 400)


def matrix(clients=5, seed=0, alpha=0.3, scheme="dirichlet"):
    partition = make_partition(Y, spec=PartitionSpec(scheme=scheme), alpha=alpha, clients=clients, seed=seed, columns={})
    names = ("liver", "kidney $1$", "lung", "spleen")
    return LabelMatrix("ct", scheme, alpha, clients, seed, partition.fingerprint, partition.label_counts, names)


def printed(table):
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


def test_matrices_survive_a_file(tmp_path):
    path = tmp_path / "partitions.json"
    assert read_partitions(path) == []
    write_partitions(path, [matrix(), matrix(clients=7)])
    again = read_partitions(path)
    assert [title(each) for each in again] == [f"ct · dirichlet · α = 0.3 · {clients} clients · seed 0" for clients in (5, 7)]
    np.testing.assert_array_equal(again[1].counts, matrix(clients=7).counts)
    strange = ({"counts": 5}, {"counts": [[1]]}, {"clients": 0, "counts": []}, {"classes": [1, 2, 3, 4]}, {"alpha": "x"}, {"scheme": 5})
    whole = json.loads(path.read_bytes())[0]
    for values in (*(whole | fields for fields in strange), {}, [], "x"):
        path.write_text(json.dumps([values]))
        with pytest.raises(UserError, match="this is not a file of partitions"):
            read_partitions(path)


def test_entropy_is_0_for_one_label_each_and_1_for_uniform_labels():
    assert matrix(clients=4, scheme="disjoint").entropy == 0
    uniform = LabelMatrix("ct", "iid", None, 2, 0, "f", np.full((2, 4), 7), ("a", "b", "c", "d"))
    assert uniform.entropy == pytest.approx(1)
    assert (uniform.labels_per_client, uniform.sizes.tolist()) == (4, [28, 28])


def test_the_tables_hold_every_count_and_the_fingerprint():
    made = matrix()
    text = printed(label_table(made))
    assert "kidney $1$" in text
    assert all(str(count) in text for count in made.counts[made.counts > 0])
    assert made.fingerprint in printed(summary_table([made]))


def test_a_long_table_ends_with_how_many_clients_more_there_are():
    assert "and 70 more clients" in printed(label_table(matrix(clients=100)))


def test_a_panel_for_every_partition_of_the_first_seed():
    figure = draw_partitions([matrix(alpha=alpha, seed=seed) for alpha in (0.1, 1.0) for seed in (0, 1)])
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.axison]
    assert titles == ["ct · dirichlet · α = 0.1 · 5 clients · seed 0", "ct · dirichlet · α = 1 · 5 clients · seed 0"]
    assert draw_partitions([]) is None
    assert len([axes for axes in draw_partitions([matrix()] * 40).axes if axes.axison]) == MOST_PANELS


@pytest.mark.parametrize("count", [3, 5, 7, 8, 10, 11])
def test_places_without_a_partition_stay_empty(count):
    figure = draw_partitions([matrix(alpha=0.1 + alpha) for alpha in range(count)])
    assert len(figure.axes) > count
    assert len([axes for axes in figure.axes if axes.axison]) == count


def test_the_picture_is_vector_graphics_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    made = [matrix(), matrix(clients=60)]
    first, second = (save_figure(draw_partitions(made), tmp_path / name, "partitions") for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    figure = draw_partitions(made)
    svg = "".join(part.svg for part in drawn(figure, svg_text(figure), "partitions", "Partitions").parts)
    assert "<image" not in svg  # a page's content policy would not show it
    assert "var(--heat)" in svg


def test_clients_with_names_are_called_by_them_and_others_by_their_numbers(tmp_path):
    held = replace(matrix(clients=3), sites=("St. Mary's", "$x$", "[b]c[/b]"))
    for made, names in ((held, held.sites), (matrix(clients=3), ("0", "1", "2"))):
        (axes,) = draw_partitions([made]).axes
        assert tuple(label.get_text() for label in axes.get_xticklabels()) == names
        assert all(name in printed(label_table(made)) for name in names)
    write_partitions(tmp_path / "p.json", [held])
    assert read_partitions(tmp_path / "p.json")[0].sites == held.sites
    with pytest.raises(ValueError, match="not every client has a name"):
        replace(held, sites=("a",))
