"""Cells on Ray's actors: the same rows as in one process, whatever dies under them or is left
behind by others.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benches import TIMES, Ran, slowness, wait_until
from cells import NODES, WITH_GPUS, one_cell, quick, small_grid
from rows import values_of
from torch import Tensor

from fedsim.errors import UserError
from fedsim.evaluation.measures import MEASURES
from fedsim.methods.parameters import ALIGNMENT
from fedsim.runs import scheduler
from fedsim.runs.prepare import Need
from fedsim.runs.ray import (
    IN_THE_CALL,
    CohortActor,
    TrialWorker,
    joined_cluster,
    prepare_process,
    ray,
)

slow = pytest.mark.slow
Bench = Callable[..., Ran]
TENSORS = (
    torch.randn(7).bfloat16(),
    torch.arange(6).view(2, 3),
    torch.tensor(2.5),
    torch.zeros(0, 4),
    torch.randn(3, 5).T,
    torch.ones(1).expand(3, 2),
    torch.randn(IN_THE_CALL),
    torch.ones(2, requires_grad=True) * 2,
)
HOSTILE = '''
import os, signal, sys, threading
from pathlib import Path

import torch
import fedsim.training.state
from baselines.weight_noise_cvae import WeightNoiseCVAE, WeightNoiseCVAEParams

fedsim.training.state.CHECKPOINT_SECONDS = 0.0


class HostileParams(WeightNoiseCVAEParams):
    marker: str = ""


class Killed(WeightNoiseCVAE):
    """Its worker, or the one of its last client, is killed in the third round until marked."""

    Params = HostileParams

    def kill(self, round_):
        if round_.number == 2 and not Path(self.params.marker).exists():
            Path(self.params.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def server_step(self, server, round_, total):
        print(f"round {round_.number} at the server")
        self.kill(round_)
        return super().server_step(server, round_, total)


class ClientKilled(Killed):
    def client_round(self, clients, round_, broadcast):
        if 3 in clients.members:
            self.kill(round_)
        return WeightNoiseCVAE.client_round(self, clients, round_, broadcast)


class Spoils(WeightNoiseCVAE):
    """Leaves another process behind than it found."""

    def server_step(self, server, round_, total):
        values = super().server_step(server, round_, total)
        if round_.number == 2:
            torch.set_default_dtype(torch.float64)
            torch.set_grad_enabled(False)
            torch.nn.functional.softplus = None
            Tensor.sum = lambda self: 0
            sys.path.clear()
            os.chdir("/")
            os.environ.clear()
        return values


class Hangs(WeightNoiseCVAE):
    def server_step(self, server, round_, total):
        if round_.number > 1:
            threading.Event().wait()
        return super().server_step(server, round_, total)
'''


@pytest.fixture
def hostile(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module of hostile plug-ins; its import changes this process, too."""
    from fedsim.training import state

    monkeypatch.setattr(state, "CHECKPOINT_SECONDS", state.CHECKPOINT_SECONDS)
    (plugins / "hostile.py").write_text(HOSTILE)
    return "hostile"


@pytest.fixture
def as_bytes(ray_cluster: None) -> Iterator[None]:
    prepare_process()
    yield
    ray.util.deregister_serializer(Tensor)


@pytest.fixture
def all_free(ray_cluster: None) -> Callable[[], None]:
    """Wait until no actor holds a share any more: none was leaked."""
    return lambda: wait_until(lambda: ray.available_resources().get("CPU") == NODES[0].cpus)


def by_label(ran: Ran, *left_out: str) -> dict[str, dict[str, Any]]:
    return {row.label: values_of(row, *TIMES, *left_out) for row in ran.rows}


def test_tensor_arrives_unchanged_in_its_own_aligned_memory(as_bytes: None) -> None:
    for sent, got in zip(
        TENSORS, ray.get([ray.put({"sent": tensor}) for tensor in TENSORS]), strict=True
    ):
        tensor = got["sent"]
        assert (tensor.dtype, tensor.shape, tensor.requires_grad) == (sent.dtype, sent.shape, False)
        assert torch.equal(tensor, sent)
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % ALIGNMENT == 0
        tensor.zero_()


KILLED = ray.exceptions.OutOfMemoryError("killed by the memory monitor")
OF_AN_ACTOR = ray.exceptions.RayTaskError("host", "a traceback", KILLED)


@pytest.mark.parametrize("error", [KILLED, OF_AN_ACTOR.as_instanceof_cause()])
def test_lost_process_is_no_failure_of_a_cell(error: Exception) -> None:
    assert TrialWorker.failure(object.__new__(TrialWorker), error) is None


def test_actor_of_further_clients_refuses_other_code(as_bytes: None) -> None:
    trial, data, _ = one_cell("dp-gaussian")
    cell = trial.cell.model_copy(update={"source": "0" * 16})
    with pytest.raises(RuntimeError, match="is not what it was when the grid was read"):
        CohortActor(Need(1.0), "cpu").host(cell, trial.cohorts()[0], "key", data)
    torch.set_flush_denormal(False)


def test_cluster_is_not_joined_while_ray_runs_here(ray_cluster: None) -> None:
    with pytest.raises(UserError, match="Ray: runs in this process already"):
        joined_cluster("auto").__enter__()


@pytest.mark.parametrize("name", ["weight-noise", pytest.param("fedhypevae", marks=slow)])
def test_three_actors_sample_and_account_like_one_process(
    bench: Bench,
    ray_bench: Bench,
    all_free: Callable[[], None],
    name: str,
) -> None:
    grids = [
        small_grid(name, epsilon=4.0, clients=5, resources={"clients_per_actor": each})
        for each in ("all", 2)
    ]
    one = bench(grids[0], "one")
    three = ray_bench(grids[1], "three")
    assert "clients per actor (2, 2, 1)" in three.log(three.rows[0])
    fingerprints = [
        [(r["round"], r["sampled"], r["noise"]) for r in ran.rounds] for ran in (one, three)
    ]
    assert fingerprints[0] == fingerprints[1]
    by_rounding = (*MEASURES, "recall_per_class", "generator")
    assert by_label(one, *by_rounding) == by_label(three, *by_rounding)
    assert one.rows[0].scores == pytest.approx(three.rows[0].scores, abs=1e-5, rel=1e-4)
    all_free()


@slow
def test_cell_of_a_killed_worker_continues_with_the_same_result(
    bench: Bench,
    ray_bench: Bench,
    hostile: str,
    tmp_path: Path,
) -> None:
    for kind, each in (("Killed", "all"), ("ClientKilled", 2)):
        entry = {
            **quick(f"{hostile}:{kind}", rounds=4, marker=str(tmp_path / f"{kind} once")),
            "label": kind,
        }
        grid = small_grid(entry, resources={"clients_per_actor": each})
        disturbed = ray_bench(grid, kind)
        undisturbed = bench(grid, f"{kind} again")
        assert disturbed.code == 0, disturbed.output
        assert "a worker process died (it was killed, " in disturbed.output
        assert "it runs again" in disturbed.output
        assert by_label(disturbed) == by_label(undisturbed)
        assert disturbed.rounds == undisturbed.rounds
        assert disturbed.log(disturbed.rows[0]).count("\nclients per actor") == 2
        assert list((tmp_path / kind / "checkpoints").iterdir()) == []


@slow
def test_failed_cells_are_recorded_and_leave_no_broken_slot(
    ray_bench: Bench,
    tmp_path: Path,
    all_free: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "MOST_LOSSES", 0)
    hows = ("exit", "client raises", "client exits")
    entries = [{**quick("plugin:Trouble", how=how, healed="never"), "label": how} for how in hows]
    ran = ray_bench(
        small_grid(*entries, "weight-noise", resources={"clients_per_actor": 2}),
        keep_going=True,
    )
    assert ran.code == 1
    assert [(row.label, row.status) for row in ran.rows] == [
        *((how, "failed") for how in hows),
        ("weight-noise", "ok"),
    ]
    ended, raised, died = (
        (row.error["type"], row.error["message"]) for row in ran.rows[:3] if row.error
    )
    assert raised == ("ZeroDivisionError", "a client is broken")
    for kind, message in (ended, died):
        assert (kind, "worker process died" in message) == ("ActorDiedError", True)
    assert "round 1 at the server" in ran.log(ran.rows[1])
    all_free()


@slow
def test_hostile_plug_ins_fail_alone(ray_bench: Bench, hostile: str) -> None:
    alone = by_label(ray_bench(small_grid("dp-gaussian", "weight-noise"), "alone"))
    hostiles = [
        {**quick(f"{hostile}:{kind}", rounds=3), "label": kind} for kind in ("Spoils", "Hangs")
    ]
    resources = {"cell_timeout": f"{8 * slowness():.0f}s"}
    started = time.monotonic()
    ran = ray_bench(
        small_grid(hostiles[0], "dp-gaussian", hostiles[1], "weight-noise", resources=resources),
        keep_going=True,
    )
    assert time.monotonic() - started < 60 * slowness()
    assert {name: row for name, row in by_label(ran).items() if name in alone} == alone
    errors = {row.label: (row.error["type"], row.error["message"]) for row in ran.rows if row.error}
    assert (errors["Hangs"][0], "it ran for longer than cell_timeout" in errors["Hangs"][1]) == (
        "TimeoutError",
        True,
    )


@slow
def test_cells_that_share_gpus_give_the_results_of_one_process(
    bench: Bench,
    ray_bench: Bench,
) -> None:
    half = {"gpus_per_actor": 0.5, "clients_per_actor": 2}
    without = bench(small_grid("dp-gaussian"), "one")
    shared = ray_bench(small_grid("dp-gaussian", resources=half), nodes=WITH_GPUS)
    assert by_label(shared, *MEASURES, "recall_per_class") == by_label(
        without,
        *MEASURES,
        "recall_per_class",
    )
