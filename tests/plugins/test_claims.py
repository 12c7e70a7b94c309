import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from benches import Done
from broken.tiny import Tiny, TinyParams
from cells import SHIPPED, small_cells
from fedsim.plugins.check_file import Ending, file_check

from baselines.dp_gaussian import DPGaussian
from baselines.fedlambda import FedLambda
from fedsim.errors import UserError
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.messages import Task
from fedsim.plugins.claims import worth
from fedsim.plugins.registry import lookup
from fedsim.privacy.plan import Claim, Trust, Unit

BROKEN = Path(__file__).parents[1] / "broken"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checks"


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
    assert worth("proved", made(lookup(name))) == "proved"


@pytest.mark.parametrize("cls", [Tiny, Hooks, type("Same", (DPGaussian,), {}), type("Private", (FedLambda,), {"private": True})])
def test_any_other_class_states_it_until_a_check_of_its_code_has_passed(cls: type[Algorithm]) -> None:
    assert worth("proved", made(cls)) == worth("stated", made(cls)) == "stated"
    file_check(made(cls), "passed")
    assert worth("proved", made(cls)) == worth("stated", made(cls)) == "checked"
    assert worth("proved", made(type("Below", (cls,), {}))) == "stated"


@pytest.mark.parametrize("claim", ["heuristic", "none"])
def test_no_check_makes_a_theorem_of_what_claims_none(claim: Claim) -> None:
    file_check(made(Tiny), "passed")
    assert worth(claim, made(Tiny)) == claim


class Modes(TinyParams):
    mode: str = "a"
    strength: float = 1.0


class Own(Tiny):
    Params: ClassVar[type[Modes]] = Modes
    units = ("example", "client")


@pytest.mark.parametrize(
    ("filed", "claim"),
    [
        ([], "stated"),
        ([("passed", {})], "checked"),
        ([("failed", {})], "heuristic"),
        # of the same parameters the last check counts
        ([("failed", {}), ("passed", {})], "checked"),
        ([("passed", {}), ("failed", {})], "heuristic"),
        # others, numbers included, do not pass for them, and cast doubt until they have passed
        ([("passed", {"strength": 0.0})], "stated"),
        ([("passed", {"rounds": 3})], "stated"),
        ([("passed", {"mode": "b"})], "stated"),
        ([("failed", {"strength": 0.0})], "heuristic"),
        ([("failed", {}), ("passed", {"strength": 0.0})], "heuristic"),
        ([("passed", {}), ("failed", {"strength": 0.0})], "checked"),
        # another setting does not pass for theirs, and what fails there is checked nowhere
        ([("passed", {"trust": "silo"})], "stated"),
        ([("failed", {"trust": "silo"})], "stated"),
        ([("failed", {"unit": "client"})], "stated"),
        ([("passed", {}), ("failed", {"trust": "silo"})], "stated"),
        ([("passed", {}), ("failed", {"unit": "client"})], "stated"),
        ([("passed", {}), ("failed", {"trust": "silo", "strength": 0.0})], "checked"),
    ],
)
def test_what_checks_on_file_say_of_the_default_parameters(filed: list[tuple[Ending, dict[str, Any]]], claim: Claim) -> None:
    for ending, other in filed:
        file_check(made(Own, **other), ending)
    assert worth("proved", made(Own)) == claim


def test_a_shipped_algorithm_in_which_a_check_found_a_fault_is_heuristic_until_one_passes() -> None:
    one = made(DPGaussian)
    file_check(one, "failed")
    assert worth("proved", one) == worth("stated", one) == "heuristic"
    file_check(one, "passed")
    assert worth("proved", one) == "proved"


def test_a_broken_file_of_a_check_counts_as_none(cache: Path) -> None:
    file_check(made(Tiny), "passed")
    (path,) = cache.glob("*/*")
    path.write_text(path.read_text().replace("passed", "fine"))
    assert worth("proved", made(Tiny)) == "stated"
    path.write_text("{")
    assert worth("proved", made(Tiny)) == "stated"


def test_a_claim_that_is_none_is_a_mistake() -> None:
    with pytest.raises(UserError, match=r"'yes' is none; let claim\(\) return one of proved, stated, heuristic, none"):
        worth("yes", made(Tiny))  # type: ignore[arg-type]


def test_no_algorithm_says_itself_that_it_was_checked() -> None:
    with pytest.raises(UserError, match=r"'checked' is what fedsim says after a passed check; let claim\(\) return one of proved, stated"):
        worth("checked", made(Tiny))


# --- from the command to a grid's rows ---


def claims(name: str, trust: Trust = "aggregate", **params: Any) -> Claim:
    """What a grid's row says; parameters that are not given are the defaults."""
    (trial,) = small_cells({"name": name, "params": params}, epsilon=4.0, trust=trust).trials
    assert trial.plan is not None
    return trial.plan.claim


def test_a_check_counts_for_rows_of_its_parameters_whatever_it_shortened(folder: Path, command: Callable[..., Done], cache: Path) -> None:
    (folder / "strong.py").write_text((BROKEN / "strength.py").read_text())
    name = "strong.py:Strength"
    ids = [trial.cell.cell_id for trial in small_cells(name).trials]
    assert claims(name) == "stated"

    sound = command("check", name, "--trust", "aggregate", "--param", "strength=0")
    assert sound.returncode == 0
    assert "rows of this code with these parameters say 'checked' for example, aggregate" in flat(sound.stdout)
    assert claims(name, strength=0.0) == "checked"
    assert claims(name, strength=0.0, rounds=12) == claims(name) == claims(name, "silo", strength=0.0) == "stated"

    broken = command("check", name, "--trust", "aggregate", "--quick")
    assert broken.returncode == 1
    assert "rows of this code with default parameters say 'heuristic' for example, aggregate" in flat(broken.stdout)
    assert claims(name) == claims(name, strength=2.0) == "heuristic"
    assert claims(name, strength=0.0) == "checked"

    elsewhere = command("check", name, "--trust", "silo", "--param", "strength=2", "--quick")
    assert elsewhere.returncode == 1
    assert claims(name, strength=0.0) == "checked"
    assert [trial.cell.cell_id for trial in small_cells(name).trials] == ids
    assert [path.suffix for path in cache.glob("*/*")] == [".json"] * 3

    sys.modules.pop("strong")
    (folder / "strong.py").write_text((BROKEN / "strength.py").read_text().replace("1.0 + self", "2.0 + self"))
    assert claims(name, strength=0.0) == "stated"


def flat(text: str) -> str:
    return " ".join(text.split())


def test_a_quick_check_that_passed_and_one_that_could_not_run_are_not_filed(command: Callable[..., Done], cache: Path) -> None:
    assert command("check", "dp-gaussian", "--trust", "aggregate", "--unit", "example", "--quick").returncode == 0
    assert command("check", "broken.bytes_by_size:BytesBySize", "--trust", "aggregate", "--param", "rounds=0").returncode == 2
    assert not cache.exists()


def test_a_fault_that_is_none_of_privacy_leaves_the_claim(command: Callable[..., Done], cache: Path) -> None:
    assert command("check", "broken.depends_on_packing:DependsOnPacking", "--trust", "aggregate", "--quick").returncode == 1
    assert not cache.exists()
