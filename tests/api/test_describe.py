from pathlib import Path

import pytest
from cells import SHIPPED
from plug_ins import changed, write

import fedsim
from fedsim.api.describe import Catalogue, describe
from fedsim.errors import PluginError
from fedsim.plugins.registry import lookup


@pytest.mark.parametrize("name", SHIPPED)
def test_every_parameter_has_its_default_and_a_sentence(name: str) -> None:
    found = describe(name)
    assert [each.name for each in found.parameters] == list(lookup(name).Params.model_fields)
    assert [each.name for each in found.parameters if not (each.type and each.default and each.meaning)] == []


def test_a_subclass_says_it_anew_and_inherits_the_rest() -> None:
    told = {each.name: each for each in describe("dp-cvae").parameters}
    assert (told["rounds"].type, told["rounds"].default, told["rounds"].constraint) == ("int", "50", ">= 1")
    assert told["rounds"].meaning == "communication rounds."


def test_claims_are_asked_for_and_a_refused_setting_is_said_so() -> None:
    assert describe("weight-noise").support() == ["example, group, client × aggregate, silo: proved"]
    assert describe("fedavg-cvae").support() == ["not private"]
    assert describe("fedhypevae-sites").claims["client", "silo"] == "does not support 'client'"


def test_the_list_has_every_algorithm_and_a_page_has_all_of_one() -> None:
    frame = fedsim.algorithms().frame.set_index("name")  # type: ignore[union-attr]
    assert set(SHIPPED) <= set(frame.index)
    assert frame.loc["dp-linear", "yields"] == "classifier"
    assert "radius=0.8" in frame.loc["dp-gaussian", "parameters"]
    text = repr(fedsim.algorithms("weight-noise"))
    for word in ("The Gaussian mechanism on clipped updates", "weight_noise_cvae.py:", "a generator", "McMahan", "client_rate"):
        assert word in text


def test_a_plug_in_is_described_its_texts_are_no_markup_and_one_that_is_refused_hides_no_other(folder: Path) -> None:
    good = write(folder, "described", changed('source = "', 'source = "[red]mine[/] '))
    text = "    Params = MyMethodParams"
    bad = write(folder, "cannot_plan", changed(text, f"{text}\n\n    def releases(self):\n        return 1 / 0\n"))
    with pytest.raises(PluginError, match=r"cannot_plan.py:\d+: ZeroDivisionError"):
        describe(bad)
    shown = repr(Catalogue((good, bad)))
    assert "[red]mine[/]" in shown
    assert "ZeroDivisionErr" in shown
