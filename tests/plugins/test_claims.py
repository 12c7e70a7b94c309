import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
from benches import TIMES, Done, Ran
from broken.tiny import Tiny, TinyParams
from cells import SHIPPED, small_grid
from plug_ins import GOOD
from rows import values_of

from baselines.dp_gaussian import DPGaussian
from baselines.fedlambda import FedLambda
from fedsim.errors import UserError
from fedsim.grid.models import Grid
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.messages import Task
from fedsim.plugins.claims import allowed, check_of, may_leave
from fedsim.plugins.registry import lookup
from fedsim.privacy.plan import Claim, Trust, Unit
from fedsim.results.columns import Row
from fedsim.results.run import read_results
from fedsim.results.store import KINDS, ResultStore

BROKEN = Path(__file__).parents[1] / "broken"


def made(cls: type[Any], unit: Unit = "example", trust: Trust = "aggregate", **params: Any) -> Algorithm:
    return cls(cls.Params(**params), Task(8, 3, 4, unit, trust))  # type: ignore[no-any-return]


class Hooks(Tiny):
    """Overrides a loss and what reads the server, as the simplest of plug-ins do."""

    def loss(self, model: Any, batch: Any) -> Any:
        return super().loss(model, batch)

    def server_step(self, *given: Any) -> Any:
        return super().server_step(*given)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_algorithm_may_claim_a_theorem(name: str) -> None:
    assert allowed("proved", made(lookup(name))) == "proved"


def tenth_of_the_noise(self: DPGaussian) -> list[Any]:
    return []


def test_a_shipped_class_in_which_a_plug_in_replaced_a_method_states_it(monkeypatch: pytest.MonkeyPatch) -> None:
    untouched = made(DPGaussian)
    for cls, name in ((DPGaussian, "phases"), (Algorithm, "noise_at_clients")):
        for given in (tenth_of_the_noise, property(tenth_of_the_noise), partial(tenth_of_the_noise)):
            with monkeypatch.context() as change:
                change.setattr(cls, name, given)
                assert allowed("proved", untouched) == "stated"
    assert allowed("proved", untouched) == "proved"


def test_a_row_of_a_shipped_method_that_a_plug_in_of_its_grid_changed_as_it_was_imported_is_stated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, bench: Callable[..., Ran]
) -> None:
    monkeypatch.setattr(DPGaussian, "phases", DPGaussian.phases)  # put back at the end
    whole = DPGaussian.phases
    text = "from baselines.dp_gaussian import DPGaussian\nwhole = DPGaussian.phases\nDPGaussian.phases = lambda self: whole(self)\n"
    (folder / "changes.py").write_text(GOOD + text)
    rows = bench(small_grid("dp-gaussian", f"{folder}/changes.py:MyMethod", epsilon=4.0)).rows
    assert DPGaussian.phases is not whole
    assert {row.claim for row in rows} == {"stated"}


@pytest.mark.parametrize("cls", [Tiny, Hooks, type("Same", (DPGaussian,), {}), type("Private", (FedLambda,), {"private": True})])
def test_any_other_class_states_it(cls: type[Algorithm]) -> None:
    assert allowed("proved", made(cls)) == allowed("stated", made(cls)) == "stated"


def test_a_claim_that_is_none_is_a_mistake() -> None:
    with pytest.raises(UserError, match=r"'checked' is not a claim; let claim\(\) return one of proved, stated, heuristic, none"):
        allowed("checked", made(Tiny))  # type: ignore[arg-type]


def test_what_is_proved_or_stated_and_checked_may_be_released() -> None:
    may = [(claim, check) for claim in get_args(Claim) for check in (None, "passed", "failed") if may_leave(claim, check)]  # type: ignore[arg-type]
    assert may == [("proved", None), ("proved", "passed"), ("stated", "passed")]


class Modes(TinyParams):
    mode: str = "a"
    strength: float = 1.0


QUICK = {"full": False}


def line(ended: str, other: dict[str, Any]) -> dict[str, Any]:
    """A check's line; full, of the default parameters, unit and trust, but for what is given."""
    params = Modes().model_dump() | {name: value for name, value in other.items() if name in Modes.model_fields}
    facts = {"unit": "example", "trust": "aggregate", "full": True} | {name: other[name] for name in other.keys() - params.keys()}
    return {**facts, "params": params, "ended": ended}


@pytest.mark.parametrize(
    ("checks", "said"),
    [
        ([], None),
        ([("passed", {})], "passed"),
        ([("failed", {})], "failed"),
        # of the same parameters the last check counts
        ([("failed", {}), ("passed", {})], "passed"),
        ([("passed", {}), ("failed", {})], "failed"),
        # others, numbers included, do not pass for them, and cast doubt until they have passed
        ([("passed", {"strength": 0.0})], None),
        ([("failed", {"strength": 0.0})], "failed"),
        ([("passed", {}), ("failed", {"strength": 0.0})], "passed"),
        # another setting does not pass for theirs, and what fails there passes nowhere
        ([("passed", {"trust": "silo"})], None),
        ([("failed", {"unit": "client"})], None),
        ([("passed", {}), ("failed", {"unit": "client"})], None),
        # a quick one only refutes
        ([("passed", QUICK)], None),
        ([("failed", QUICK), ("passed", QUICK)], "failed"),
        ([("passed", {}), ("passed", QUICK)], "passed"),
        ([("failed", QUICK), ("passed", {})], "passed"),
    ],
)
def test_what_checks_say_of_the_default_parameters(checks: list[tuple[str, dict[str, Any]]], said: str | None) -> None:
    assert check_of([line(*check) for check in checks], "example", "aggregate", Modes().model_dump()) == said


# --- from checks to a grid's rows ---

PARAMS: dict[str, dict[str, Any]] = {
    "sound": {"strength": 0.0},
    "default": {},
    "double": {"strength": 2.0},
    "longer": {"strength": 0.0, "rounds": 6},
}


def strong(name: str, **keys: Any) -> Grid:
    """One cell for each of PARAMS, of a plug-in that is sound at strength 0 alone."""
    entries = [{"name": name, "label": label, "params": {"rounds": 3, **params}} for label, params in PARAMS.items()]
    return small_grid(*entries, epsilon=4.0, **keys)


def checks(folder: Path) -> dict[str, str | None]:
    """What checks of the rows of a folder say, by their labels; all rows are stated."""
    found = read_results(folder).rows
    assert {row.claim for row in found} == {"stated"}
    return {row.label: row.check for row in found}


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder without their wall time."""
    return [values_of(row, *TIMES) for row in read_results(folder).rows]


def files(folder: Path) -> dict[str, bytes]:
    """The result lines and the tensors of a folder."""
    found = [folder / f"{kind}.jsonl" for kind in KINDS] + sorted((folder / "trained").iterdir())
    return {path.name: path.read_bytes() for path in found if path.exists()}


def test_a_check_counts_for_rows_of_its_parameters_in_the_run_folders_that_it_names(
    tmp_path: Path, command: Callable[..., Done], bench: Callable[..., Ran]
) -> None:
    (tmp_path / "strong.py").write_text((BROKEN / "noise.py").read_text())
    name = f"{tmp_path}/strong.py:Strength"
    here, elsewhere = bench(strong(name), "here").folder, tmp_path / "elsewhere"
    shutil.copytree(here, elsewhere)
    unchecked = rows(here)
    assert checks(here) == dict.fromkeys(PARAMS)

    sound = command("check", name, "--trust", "aggregate", "--param", "strength=0", "--param", "rounds=3", "--run", str(here))
    assert sound.returncode == 0
    assert f"{here}: rows of this code: 1 passed, 3 unchecked" in flat(sound.stdout)
    assert checks(here) == {**dict.fromkeys(PARAMS), "sound": "passed"}

    broken = command("check", name, "--trust", "aggregate", "--param", "rounds=3", "--quick", "--run", str(here))
    assert broken.returncode == 1
    assert f"{here}: rows of this code: 1 passed, 3 failed" in flat(broken.stdout)
    assert checks(here) == {**dict.fromkeys(PARAMS, "failed"), "sound": "passed"}

    silo = command("check", name, "--trust", "silo", "--param", "strength=2", "--quick", "--run", str(here))
    assert silo.returncode == 1
    assert checks(here)["sound"] == "passed"
    assert [row.check for row in derived(here)] == ["passed", "failed", "failed", "failed"]

    # another folder, be it on another machine, knows nothing of it
    assert rows(elsewhere) == unchecked
    assert list(ResultStore(elsewhere).lines("checks")) == []

    (tmp_path / "strong.py").write_text((BROKEN / "noise.py").read_text().replace("1.0 + self", "2.0 + self"))
    sys.modules.pop("strong")
    assert {row.check for row in bench(strong(name), "here").rows} == {None}


def derived(folder: Path) -> list[Row]:
    """The rows as ``results.jsonl`` has them."""
    return [Row(json.loads(line)) for line in (folder / "results.jsonl").read_text().splitlines()]


def flat(text: str) -> str:
    return " ".join(text.split())


def test_a_grid_that_asks_for_checks_adds_their_lines_to_what_is_finished_and_touches_no_other(bench: Callable[..., Ran]) -> None:
    finished = bench(strong("broken.noise:Strength"))
    before = files(finished.folder)
    assert checks(finished.folder) == dict.fromkeys(PARAMS)
    checked = bench(strong("broken.noise:Strength", check="quick"))
    after = files(checked.folder)
    lines = list(ResultStore(checked.folder).lines("checks"))
    assert {**before, "checks.jsonl": after["checks.jsonl"]} == after
    assert [(line["ended"], line["full"]) for line in lines] == [("passed", False), ("failed", False), ("failed", False), ("passed", False)]
    # without a full check what passed quickly is in doubt once others failed
    assert checks(checked.folder) == dict.fromkeys(PARAMS, "failed")
    assert bench(strong("broken.noise:Strength", check="quick")).code == 0
    assert files(checked.folder) == after


def test_a_check_that_could_not_run_leaves_no_line(tmp_path: Path, command: Callable[..., Done], bench: Callable[..., Ran]) -> None:
    folder = bench(small_grid("broken.tiny:Tiny", epsilon=4.0)).folder
    done = command("check", "broken.tiny:Tiny", "--trust", "aggregate", "--param", "rounds=0", "--run", str(folder))
    assert done.returncode == 2
    assert list(ResultStore(folder).lines("checks")) == []


def test_a_fault_that_is_none_of_privacy_leaves_the_row(command: Callable[..., Done], bench: Callable[..., Ran]) -> None:
    folder = bench(small_grid("broken.results:DependsOnPacking", epsilon=4.0)).folder
    done = command("check", "broken.results:DependsOnPacking", "--trust", "aggregate", "--quick", "--run", str(folder))
    assert done.returncode == 1
    assert [row.check for row in read_results(folder).rows] == [None]
    assert list(ResultStore(folder).lines("checks")) == []
