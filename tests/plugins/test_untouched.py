"""A theorem is of shipped code that nobody replaced, in whatever module that is."""

import importlib
import sys
import time
from functools import lru_cache, partial, partialmethod, wraps
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

import baselines.dp_gaussian
import fedsim.files
import fedsim.methods.one_shot
import fedsim.privacy.noise
import fedsim.privacy.plan
from baselines.dp_gaussian import DPGaussian
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.messages import Task
from fedsim.plugins.claims import allowed
from fedsim.plugins.untouched import replaced
from fedsim.privacy.ledger import Ledger
from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.statistics import outer_products

ROOT = Path(__file__).parents[2]
ONE_SHOT = fedsim.methods.one_shot
"""A module that imports ``clipped_statistics`` from another shipped one."""


def mine(*arguments: Any, **names: Any) -> list[Any]:
    return []


class Mine(Mechanism):
    pass


CODE_OF_A_PLUG_IN = mine.__code__.replace(co_filename="/lib/site-packages/plug_in.py")


def claim() -> str:
    return allowed("proved", DPGaussian(DPGaussian.Params(), Task(8, 3, 4)))


@pytest.mark.parametrize(
    ("place", "name", "other"),
    [
        (outer_products, "clipped_statistics", mine),
        (ONE_SHOT, "clipped_statistics", mine),
        (ONE_SHOT, "clipped_statistics", torch.zeros_like),
        (ONE_SHOT, "clipped_statistics", Mock()),
        (outer_products, "clipped_statistics", fedsim.privacy.noise.fingerprint),
        (outer_products, "clipped_statistics", wraps(outer_products.clipped_statistics)(mine)),
        (outer_products, "clipped_statistics", partial(outer_products.clipped_statistics)),
        (outer_products, "clipped_statistics", lru_cache(mine)),
        (fedsim.privacy.noise, "_box_muller", mine),
        (fedsim.privacy.plan, "Mechanism", Mine),
        (fedsim.privacy.plan, "PrivacyPlan", Mine),
        (Ledger, "record", mine),
        (Mechanism, "costs", property(mine)),
        (Mechanism, "__eq__", mine),
        (DPGaussian, "noise_at_clients", mine),
        (DPGaussian, "noise_at_clients", partial(mine)),
        (Algorithm, "sensitivity", property(mine)),
        (baselines.dp_gaussian, "DPGaussian", type("DPGaussian", (DPGaussian,), {})),
        (DPGaussian, "Params", type("Params", (DPGaussian.Params,), {})),
        (DPGaussian, "alias", DPGaussian),
        (DPGaussian, "noise_at_clients", Mock()),
        (DPGaussian, "noise_at_clients", mine.__get__(0)),
        (DPGaussian, "noise_at_clients", partialmethod(mine)),
        (DPGaussian, "noise_at_clients", bool),
        (DPGaussian, "noise_at_clients", Mechanism.scaled),
        (DPGaussian, "noise_at_clients", FunctionType(CODE_OF_A_PLUG_IN, {})),
        (fedsim.files, "suppress", Mine),
        (fedsim.files, "os", SimpleNamespace()),
        (fedsim.files, "open", mine),
    ],
)
def test_replaced_code_is_only_stated(
    monkeypatch: pytest.MonkeyPatch, place: Any, name: str, other: Any
) -> None:
    assert claim() == "proved"
    monkeypatch.setattr(place, name, other, raising=False)
    assert claim() == "stated"
    monkeypatch.undo()
    assert claim() == "proved"


def test_module_without_a_source_is_only_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fedsim.words", ModuleType("fedsim.words"))
    assert claim() == "stated"


def test_replaced_name_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outer_products, "clipped_statistics", mine)
    assert str(replaced()).endswith(".clipped_statistics")


def test_function_with_replaced_code_is_only_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outer_products.clipped_statistics, "__code__", mine.__code__)
    assert claim() == "stated"


def test_all_shipped_modules_are_untouched() -> None:
    for package in ("fedsim", "algorithms", "baselines"):
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            importlib.import_module(".".join(parts).removesuffix(".__init__"))
    assert replaced() is None


def test_second_comparison_takes_milliseconds() -> None:
    replaced()
    start = time.process_time()
    for _ in range(20):
        replaced()
    assert (time.process_time() - start) / 20 < 0.05
