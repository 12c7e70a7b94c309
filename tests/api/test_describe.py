import io
from pathlib import Path

import pytest
from cells import SHIPPED
from plug_ins import changed, write
from rich.console import Console

from fedsim.api.describe import algorithm_page, algorithms_table, describe
from fedsim.errors import PluginError, UserError
from fedsim.plugins.registry import lookup


def printed(*parts: object, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    for part in parts:
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_parameter_has_its_default_and_a_sentence(name: str) -> None:
    found = describe(name)
    assert [each.name for each in found.parameters] == list(lookup(name).Params.model_fields)
    assert [each.name for each in found.parameters if not (each.type and each.default and each.meaning)] == []


def test_a_subclass_says_it_anew_and_inherits_the_rest() -> None:
    told = {each.name: each for each in describe("dp-cvae").parameters}
    assert (told["rounds"].type, told["rounds"].default, told["rounds"].constraint) == ("int", "50", ">= 1")
    assert told["rounds"].meaning == "communication rounds."
    assert told["local_steps"].meaning.startswith("25 steps at sample rate 0.2 are the 5 local epochs")
    assert told["engine"].type == "bookkeeping | vmap"


def test_claims_are_asked_for_and_a_refused_setting_is_said_so() -> None:
    assert describe("weight-noise").support() == ["example, group, client × aggregate, silo: proved"]
    assert describe("fedavg-cvae").support() == ["not private"]
    sites = describe("fedhypevae-sites")
    assert sites.support() == ["example, group × aggregate, silo: proved"]
    assert sites.claims["client", "silo"] == "does not support 'client'"


def test_the_list_has_a_row_for_every_algorithm_and_fits_100_columns() -> None:
    text = printed(algorithms_table(SHIPPED))
    assert max(map(len, text.splitlines())) <= 100
    for name in SHIPPED:
        assert name in text
    assert "meta_steps=50" in text


def test_a_page_has_the_docstring_the_place_and_the_parameters() -> None:
    text = printed(*algorithm_page(describe("weight-noise")))
    for word in (
        "The Gaussian mechanism on clipped updates",
        "weight_noise_cvae.py:",
        "a generator",
        "LocalTraining",
        "McMahan",
        "client_rate",
    ):
        assert word in text


def test_a_file_can_be_described_and_its_texts_are_no_markup(folder: Path) -> None:
    name = write(folder, "described", changed('source = "', 'source = "[red]mine[/] '))
    assert "[red]mine[/]" in printed(*algorithm_page(describe(name)))
    assert "[red]mine[/]" in printed(algorithms_table([name]))


def test_a_class_that_says_nothing_is_not_told_by_its_base(folder: Path) -> None:
    docstring = '    """One encoder and one decoder for all clients, trained on every example\'s negative ELBO."""\n'
    name = write(folder, "silent", changed(docstring, ""))
    assert describe(name).text.startswith("My method: a conditional VAE")


def test_a_plug_in_that_is_refused_does_not_hide_the_others(folder: Path) -> None:
    text = "    Params = MyMethodParams"
    name = write(folder, "cannot_plan", changed(text, f"{text}\n\n    def releases(self):\n        return 1 / 0\n"))
    with pytest.raises(PluginError, match=r"cannot_plan.py:\d+: ZeroDivisionError"):
        describe(name)
    table = printed(algorithms_table([name, "dp-gaussian"]))
    assert "ZeroDivisionError" in table
    assert "coordinates_share=0.16" in table


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'dp-gaussian'"):
        describe("dp-gausian")
