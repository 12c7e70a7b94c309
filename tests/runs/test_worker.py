"""What travels between the actors of a cell, and how many of them there are."""

import sys
from collections.abc import Iterator
from copy import deepcopy

import pytest
import ray
import torch
from benches import wait_until
from cells import NODES, quick, small_cells

from fedsim.methods.parameters import ALIGNMENT
from fedsim.planning.node import Share
from fedsim.planning.process import settle
from fedsim.runs.actors import IN_THE_CALL, CohortActor, send_tensors_as_bytes
from fedsim.runs.engine import Slot
from fedsim.runs.ray_engine import RayEngine
from fedsim.runs.slots import Slots
from fedsim.training.cohort import HELD

SHARE = Share(1.0)

TENSORS = {
    "single": torch.randn(3, 5),
    "double": torch.randn(4, dtype=torch.float64),
    "brain float": torch.randn(7).bfloat16(),
    "whole": torch.arange(6).view(2, 3),
    "true or false": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "transposed": torch.randn(3, 5).T,
    "a single number that repeats": torch.tensor(1.0).expand(1),
    "expanded": torch.ones(1).expand(3, 2),
    "larger than a call": torch.randn(IN_THE_CALL),
}


@pytest.fixture
def as_bytes(ray_cluster: None) -> Iterator[None]:
    send_tensors_as_bytes()
    yield
    ray.util.deregister_serializer(torch.Tensor)


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_arrives_as_it_was_sent_in_aligned_memory_of_its_own(as_bytes: None, name: str) -> None:
    sent = TENSORS[name]
    got = ray.get(ray.put({name: sent}))[name]
    assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
    assert torch.equal(got, sent)
    assert got.is_contiguous()
    assert got.data_ptr() % ALIGNMENT == 0
    got.zero_()


def test_a_gradient_is_no_part_of_what_is_sent(as_bytes: None) -> None:
    sent = torch.ones(2, requires_grad=True) * 2
    assert not ray.get(ray.put(sent)).requires_grad


@pytest.fixture
def slots(ray_cluster: None) -> Iterator[Slots]:
    slots = Slots(RayEngine(), tuple(NODES), parallel=4)
    yield slots
    slots.close()


def taken(slots: Slots, actors: int, *, any_shape: bool = False) -> Slot:
    """A slot, once Ray has placed it."""
    found: list[Slot] = []

    def placed() -> bool:
        slot = slots.take(actors, SHARE, any_shape=any_shape)
        found.extend([slot] if slot else [])
        return bool(found)

    wait_until(placed)
    return found[0]


def test_a_cell_on_three_actors_is_three_processes_one_of_which_coordinates(slots: Slots) -> None:
    slot = taken(slots, 3)
    assert (slot.actors, 1 + len(slot.held.cohorts)) == (3, 3)


def test_a_reference_takes_an_idle_slot_of_any_shape_and_opens_the_one_that_its_cell_needs(slots: Slots) -> None:
    opened = taken(slots, 3, any_shape=True)
    assert opened.actors == 3
    slots.give_back(opened)
    assert slots.take(1, SHARE, any_shape=True) is opened
    slots.give_back(opened)
    assert slots.take(3, SHARE) is opened


def test_a_process_of_ray_has_the_workers_module_before_it_is_asked_for_anything(ray_cluster: None) -> None:
    assert ray.get(ray.remote(lambda: "fedsim.runs.actors" in sys.modules).remote())


def test_rows_that_an_actor_gets_again_are_put_on_its_device_once(as_bytes: None) -> None:
    prepared = small_cells(quick("fedavg-linear"))
    (trial,), (data,) = prepared.trials, prepared.data.values()
    first, again, other = (deepcopy(data) for _ in range(3))
    actor, device = CohortActor(SHARE), torch.device("meta")
    actor.process.device = device
    try:
        actor.host(trial.cohorts()[0], "a", first)
        there = HELD.on(device, first.x_train)
        actor.host(trial.cohorts()[0], "a", again)
        assert HELD.on(device, first.x_train) is there
        actor.host(trial.cohorts()[0], "b", other)
        assert HELD.on(device, first.x_train) is not there
    finally:
        torch.set_flush_denormal(False)


def test_what_a_process_trains_on_is_never_slowly_small() -> None:
    tiny = torch.full((8,), 1e-38)
    assert (tiny / 8).any()
    try:
        settle(1)
        assert not (tiny / 8).any()
    finally:
        torch.set_flush_denormal(False)
