import re

import pytest
from cells import NODES, small_cells, small_grid

from fedsim.errors import UserError
from fedsim.planning.gpu_memory import HEAD_ROOM, MOST_ACTORS_PER_GPU, doubled, least, share_for
from fedsim.planning.node import Node
from fedsim.planning.prepare import prepare


@pytest.mark.parametrize("measured", [0.0, 0.01, 0.1, 0.2, 0.34, 0.7, 1.0])
def test_what_was_measured_fits_with_room_and_whole_numbers_of_actors_fill_a_gpu(measured: float) -> None:
    share = share_for(measured)
    assert share >= min(1.0, measured * HEAD_ROOM) - 1e-4
    assert 1 <= round(1 / share) <= MOST_ACTORS_PER_GPU
    assert round(1 / share) * share <= 1


def test_twice_a_share_ends_with_a_whole_gpu() -> None:
    shares = [1 / 16]
    while shares[-1] < 1:
        shares.append(doubled(shares[-1]))
    assert shares == [1 / 16, 0.125, 0.25, 0.5, 1.0]
    assert doubled(0.3) == 1.0


def test_the_least_that_an_actor_needs_are_its_rows_and_its_parameters_with_their_optimiser() -> None:
    prepared = small_cells("fedavg-linear", clients=1)
    (trial,), (data,) = prepared.trials, prepared.data.values()
    rows, parameters = least(trial, data)
    assert rows == 2 * len(data.x_train) * (4 * data.dim + 8)
    assert parameters == 16 * (data.dim + 1) * data.classes
    (apart,) = small_cells("fedavg-linear", clients=4, resources={"clients_per_actor": 1}).trials
    most = max(map(len, apart.partition.rows))
    assert most > len(apart.partition.rows[0])
    assert least(apart, data)[0] == (len(data.x_train) + most) * (4 * data.dim + 8)


def test_mistakes_in_gpus_are_told_with_the_arithmetic_before_anything_runs() -> None:
    for share in (0.5, "auto"):
        with pytest.raises(UserError, match=r"^resources: an actor needs 1 CPU and .*GPU.*; no node has them \(4 CPUs and 0 GPUs\)"):
            prepare(small_grid("dp-gaussian", resources={"gpus_per_actor": share}), NODES)
    with pytest.raises(ValueError, match="device: cuda with gpus_per_actor: 0 leaves actors without a GPU"):
        small_grid("dp-gaussian", resources={"device": "cuda"})
    with pytest.raises(ValueError, match=r"1\.5 is not a share of a GPU; give auto, a number in \[0, 1\] or a whole number"):
        small_grid("dp-gaussian", resources={"gpus_per_actor": 1.5})
    told = r"^resources: an actor of fedhypevae with a client needs at least .* for rows and .* for parameters, .* GiB; 0.25 of a GPU"
    with pytest.raises(UserError, match=told) as error:
        prepare(small_grid("fedhypevae", resources={"gpus_per_actor": 0.25}), [Node(4.0, 1.0, 2.0**18)])
    rows, parameters, needed, card, room = (float(n) for n in re.findall(r"([\d.e-]+) GiB", str(error.value)))
    assert rows + parameters == pytest.approx(needed, rel=1e-2)
    assert room == pytest.approx(0.25 * card, rel=1e-2)
    assert needed > room
    assert prepare(small_grid("fedhypevae", resources={"gpus_per_actor": 0.25, "device": "cpu"}), [Node(4.0, 1.0, 2.0**18)]).trials
