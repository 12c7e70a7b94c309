import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from broken.tiny import Tiny
from cells import SHIPPED, quick, small_cells
from plug_ins import GOOD, write

from baselines.dp_gaussian import DPGaussian
from baselines.fedlambda import FedLambda
from baselines.weight_noise_cvae import WeightNoiseCVAE
from fedsim.cli import main
from fedsim.errors import UserError
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.check_file import file_check
from fedsim.methods.claims import is_guaranteed, worth
from fedsim.methods.dp_sgd import DPSGD
from fedsim.methods.messages import Task, Tensors
from fedsim.methods.registry import lookup
from fedsim.privacy.plan import Claim, Trust, Unit

BROKEN = Path(__file__).parents[1] / "broken"


def made(cls: type[Any], **params: Any) -> Algorithm:
    return cls(cls.Params(**params), Task(8, 3, 4))  # type: ignore[no-any-return]


class Derived(Tiny):
    """Overrides hooks alone."""

    def loss(self, model: Any, batch: Any) -> Any:
        return super().loss(model, batch)

    def server_step(self, *given: Any) -> Any:
        return super().server_step(*given)

    def of_its_own(self) -> int:
        return 1


class Narrowed(Tiny):
    units: ClassVar[tuple[Unit, ...]] = ("example",)
    trusts: ClassVar[tuple[Trust, ...]] = ("silo",)


def overriding(base: type[Algorithm], name: str, value: object) -> type[Algorithm]:
    return type("Own", (base,), {name: value})


def test_every_shipped_algorithm_is_guaranteed_by_itself() -> None:
    assert [name for name in SHIPPED if not is_guaranteed(made(lookup(name)))] == []


@pytest.mark.parametrize("cls", [Tiny, Derived, Narrowed, type("Same", (DPGaussian,), {})])
def test_what_overrides_hooks_alone_keeps_the_theorem_of_its_base_class(cls: type[Algorithm]) -> None:
    assert is_guaranteed(made(cls))
    assert worth("proved", made(cls)) == "proved"


NAMES = [
    *("client_round", "releases", "sensitivity", "plan", "noise_at_clients", "claim", "start_clients", "clip", "norms", "schedule"),
    *("releases_codes", "diagnostics", "scope", "schedule", "_local_step"),
]


@pytest.mark.parametrize("name", NAMES)
def test_what_overrides_a_part_of_the_proof_states_it(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))
    inherited = getattr(DPSGD, name)
    own = overriding(Tiny, name, lambda self, *given: inherited(self, *given))
    assert worth("proved", made(own)) == "stated"
    assert worth("proved", made(type("Below", (own,), {}))) == "stated"  # in a base class of its own
    assert worth("stated", made(own)) == "stated"
    assert worth("heuristic", made(own)) == "heuristic"
    assert worth("none", made(own)) == "none"


def test_what_pulls_local_steps_sees_all_clients_and_states_its_theorem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))

    def to_the_mean(self: Any, gradients: Tensors, shared: Tensors, broadcast: Tensors) -> None:
        for name, value in shared.items():
            gradients[name] = gradients[name] + value - value.mean(0)

    assert worth("proved", made(overriding(WeightNoiseCVAE, "pull", to_the_mean))) == "stated"


def test_more_units_privacy_where_there_was_none_and_rows_seen_at_once_are_stated() -> None:
    assert not is_guaranteed(made(overriding(DPGaussian, "units", ("example", "client"))))
    assert not is_guaranteed(made(overriding(FedLambda, "private", True)))
    assert not is_guaranteed(made(overriding(DPGaussian, "statistics", lambda *given: DPGaussian.statistics(*given))))
    # what LocalTraining clips is private for every loss, so its private subclasses are
    assert is_guaranteed(made(type("Private", (WeightNoiseCVAE,), {})))


def test_a_method_that_an_instance_replaces_counts_too() -> None:
    class Sly(Tiny):
        def __init__(self, params: Any, task: Task) -> None:
            super().__init__(params, task)
            vars(self)["clip"] = lambda: 1e9

    assert not is_guaranteed(made(Sly))


def test_a_plan_of_its_own_cannot_say_proved_by_itself(folder: Path) -> None:
    text = GOOD + "\n    def plan(self, epsilon, delta):\n        return super().plan(epsilon, delta)\n"
    (trial,) = small_cells(quick(write(folder, "plans_itself", text)), epsilon=4.0).trials
    assert trial.plan is not None
    assert trial.plan.claim == "stated"
    (starter,) = small_cells(quick(write(folder, "plans_not", GOOD)), epsilon=4.0).trials
    assert starter.plan is not None
    assert starter.plan.claim == "proved"


@pytest.fixture
def spelled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a sound plug-in that spells its client round out, with parameters of every kind; returns its name."""
    monkeypatch.setenv("FEDSIM_CACHE", str(folder / "cache"))

    def write_it(weight: str = "1.0") -> str:
        text = (BROKEN / "tiny.py").read_text().replace(".square().sum(1)}", f".square().sum(1) * {weight}}}")
        batch = "    expected_batch: float = Field(16, gt=0)\n"
        text = text.replace(batch, f"{batch}    mode: str = 'a'\n    flag: bool = False\n")
        sys.modules.pop("spelled", None)
        (folder / "spelled.py").write_text(text)
        return "spelled.py:Spelled"

    return write_it


def check(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fedsim", "check", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def claims(name: str, trust: Trust = "aggregate", **params: Any) -> Claim:
    (trial,) = small_cells(quick(name, **params), epsilon=4.0, trust=trust).trials
    assert trial.plan is not None
    return trial.plan.claim


def test_a_passed_check_of_the_same_code_setting_and_mode_makes_it_checked(spelled: Callable[..., str], folder: Path) -> None:
    name = spelled()
    ids = [trial.cell.cell_id for trial in small_cells(name).trials]
    assert claims(name) == "stated"
    assert check(name, "--trust", "aggregate", "--param", "mode=b") == 0
    assert claims(name, mode="b") == "checked"
    assert claims(name, mode="b", clip=0.3, rounds=9) == "checked"
    assert [trial.cell.cell_id for trial in small_cells(name).trials] == ids
    assert claims(name) == claims(name, mode="b", flag=True) == claims(name, "silo", mode="b") == "stated"

    assert claims(spelled("2.0"), mode="b") == "stated"
    assert claims(spelled(), mode="b") == "checked"
    assert [path.suffix for path in (folder / "cache" / "checks").iterdir()] == [".json"]


def test_a_check_that_says_nothing_new_is_not_filed(spelled: Callable[..., str], folder: Path) -> None:
    spelled()
    assert check("dp-gaussian", "--trust", "aggregate", "--unit", "example", "--quick") == 0
    assert check("broken.bytes_by_size:BytesBySize", "--trust", "aggregate", "--param", "rounds=0") == 2
    assert not (folder / "cache" / "checks").exists()


def test_what_a_check_found_a_fault_in_is_heuristic_until_one_passes(spelled: Callable[..., str], folder: Path) -> None:
    spelled()
    (folder / "unpaid.py").write_text((BROKEN / "size_leaves_unpaid.py").read_text())
    name = "unpaid.py:SizeLeavesUnpaid"
    assert claims(name, "silo") == "stated"
    assert check(name, "--trust", "silo", "--quick") == 1
    assert claims(name, "silo") == "heuristic"

    one_label = made(DPGaussian)
    file_check(one_label, "failed")
    assert worth("proved", one_label) == worth("stated", one_label) == "heuristic"
    file_check(one_label, "passed")
    assert worth("proved", one_label) == "proved"


def test_a_fault_that_is_none_of_privacy_leaves_the_claim(spelled: Callable[..., str], folder: Path) -> None:
    spelled()
    (folder / "packed.py").write_text((BROKEN / "depends_on_packing.py").read_text())
    before = claims("packed.py:DependsOnPacking")
    assert check("packed.py:DependsOnPacking", "--trust", "aggregate", "--quick") == 1
    assert claims("packed.py:DependsOnPacking") == before


def test_a_claim_that_is_none_is_a_mistake() -> None:
    with pytest.raises(UserError, match=r"'yes' is none; let claim\(\) return one of proved, stated, heuristic, none"):
        worth("yes", made(Tiny))  # type: ignore[arg-type]


def test_no_algorithm_says_itself_that_it_was_checked() -> None:
    with pytest.raises(UserError, match=r"'checked' is what fedsim says after a passed check; let claim\(\) return one of proved, stated"):
        worth("checked", made(Tiny))


def test_a_broken_file_of_a_check_counts_as_none(spelled: Callable[..., str], folder: Path) -> None:
    name = spelled()
    assert check(name, "--trust", "aggregate") == 0
    (path,) = (folder / "cache" / "checks").iterdir()
    path.write_text("{")
    assert claims(name) == "stated"
