"""The plan is solved by fedsim for what a method releases; a method refuses settings, and changes no plan."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benches import Done
from broken.refused import ClientMayBeRefused
from broken.tiny import Tiny
from cells import NODES, quick, small_cells, small_grid

from fedsim.errors import PluginError, UserError
from fedsim.methods.algorithm import Algorithm, solved_plan
from fedsim.methods.messages import Task
from fedsim.planning.prepare import prepare
from fedsim.privacy.plan import Trust, Unit, calibrate

HALF = "broken.noise:HalfTheNoise"
REFUSED = r"HalfTheNoise\.plan.*let releases\(\), clip\(\) and sensitivity\(\)"


def made(cls: type[Algorithm], unit: Unit = "example", trust: Trust = "aggregate", **params: Any) -> Algorithm:
    return cls(cls.Params(**params), Task(8, 3, 4, unit, trust))


@pytest.mark.parametrize("line", [["check", HALF, "--quick"], ["audit", HALF, "--pairs", "2"], ["algorithms", HALF]])
def test_a_plan_of_a_methods_own_is_refused_before_anything_is_written(
    line: list[str], command: Callable[..., Done], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(folder / "cache"))
    done = command(*line)
    assert (done.returncode, done.stdout) == (2, "")
    assert "HalfTheNoise.plan" in done.stderr
    assert not (folder / "runs").exists()
    assert not (folder / "cache" / "checks").exists()


def test_the_rehearsal_refuses_it_and_leaves_it_out_of_a_grid_that_keeps_going() -> None:
    with pytest.raises(PluginError, match=REFUSED):
        prepare(small_grid(HALF, epsilon=4.0), NODES)
    prepared = prepare(small_grid(HALF, "broken.tiny:Tiny", epsilon=4.0), NODES, keep_going=True)
    assert (list(prepared.refused), len(prepared.trials)) == ([0], 1)


def test_so_does_the_preflight_of_what_was_not_rehearsed() -> None:
    with pytest.raises(PluginError, match=REFUSED):
        prepare(small_grid(HALF, epsilon=4.0), NODES, rehearsal=lambda *given: None)


def test_an_instance_cannot_have_one_either() -> None:
    algorithm = made(Tiny)
    vars(algorithm)["plan"] = lambda *given: None
    with pytest.raises(PluginError, match=r"Tiny\.plan"):
        solved_plan(algorithm, 1.0, 1e-4)


class Doubled(Tiny):
    def sensitivity(self) -> float:
        return 2 * self.clip()


def test_what_a_method_says_of_its_releases_is_what_the_plan_is_solved_for() -> None:
    own = made(Doubled)
    assert solved_plan(own, 4.0, 1e-4) == calibrate(
        epsilon=4.0,
        delta=1e-4,
        releases=own.releases(),
        unit="example",
        trust="aggregate",
        scope="joint",
        claim="proved",
        clip=1.0,
        sensitivity=2.0,
    )
    assert solved_plan(own, None, 1e-4) is None


def test_a_method_refuses_a_setting_by_its_word() -> None:
    with pytest.raises(UserError, match="rows_only: clients have no plan"):
        solved_plan(made(ClientMayBeRefused, "client", "silo", rows_only=True), math.inf, 1e-4)
    with pytest.raises(UserError, match="unit: does not support 'group'"):
        solved_plan(made(ClientMayBeRefused, "group"), 1.0, 1e-4)
    (trial,) = small_cells(quick("broken.refused:ClientMayBeRefused"), epsilon=4.0, trust="silo", unit="client").trials
    assert trial.plan is not None
