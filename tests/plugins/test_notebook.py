from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from notebooks import IPython, Notebook

from fedsim.errors import UserError
from fedsim.plugins.code_hash import own_files, place_of, source_hash
from fedsim.plugins.notebook import keep_sources, name_of, take_sources
from fedsim.plugins.registry import lookup, notebook_folder

IMPORTS = """
import math
import torch
from torch import nn
from pydantic import Field
from fedsim.methods import DPSGD, DPSGDParams
"""
PARAMS = """
class MineParams(DPSGDParams):
    width: int = Field(8, ge=1)
"""
PARTS = """
SCALE = 0.5

def scaled(loss):
    return SCALE * loss

class Net(nn.Sequential):
    @torch.no_grad()
    def probabilities(self, x):
        return self(x).softmax(1)
"""
MINE = '''
class Mine(DPSGD):
    """A network."""
    Params = MineParams

    def build(self, clients):
        return Net(nn.Linear(self.task.dim, self.params.width), nn.Linear(self.params.width, self.task.classes))

    def loss(self, model, batch):
        torch_ = torch
        return {"ce": scaled(nn.functional.cross_entropy(model(batch.x), batch.y, reduction="none"))}

    def classifier(self, server):
        return server.model

name = "never reached"  # nor is what a cell does beside the class
assert not hasattr(__builtins__, "ran twice")
'''


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=[Notebook, IPython])
def notebook(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A notebook in which the class is defined over several cells."""
    book = request.param(monkeypatch)
    for text in (IMPORTS, PARAMS, PARTS, MINE):
        book.cell(text)
    return book


def test_a_class_of_cells_is_a_module_with_all_that_it_uses_and_nothing_else(notebook: Any) -> None:
    found: Any = lookup(name_of(notebook.names["Mine"]))
    assert found is not notebook.names["Mine"]
    assert found.__module__.startswith("notebook_Mine_")
    module = __import__(found.__module__)
    assert module.scaled(1.0) == 0.5
    assert found.Params(width=3).width == 3
    assert not hasattr(module, "math")
    assert own_files(found) == {Path(module.__file__).resolve()}


def test_its_code_is_in_the_ids_and_a_comment_is_not(notebook: Any) -> None:
    def facts() -> tuple[str, str]:
        cls = lookup(name_of(notebook.names["Mine"]))
        return source_hash(cls), place_of(cls)

    first = facts()
    notebook.cell(MINE.replace("        torch_ = torch\n", "        # a comment\n        torch_ = torch\n"))
    assert facts() == first
    notebook.cell("SCALE = 0.25")
    second = facts()
    assert {first[0], first[1]}.isdisjoint(second)
    notebook.cell(PARAMS.replace("8", "16"))
    notebook.cell(MINE)
    assert facts() not in (first, second)
    assert lookup(name_of(notebook.names["Mine"])).Params().width == 16  # type: ignore[attr-defined]


def test_a_registered_class_may_be_defined_again(notebook: Any) -> None:
    for scale in (1, 2):
        notebook.cell(f'from fedsim.methods import register\n@register("of-a-notebook")\n{MINE.strip()}\nSCALE = {scale}')
        assert name_of(notebook.names["Mine"]).startswith("notebook_Mine_")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("SCALE = torch.ones(1)", "Mine: uses 'SCALE' of the notebook, which is Tensor and cannot be written down; import or"),
        ("Mine.loss = lambda self, model, batch: {}", "Mine: is not what its source says; run its cell again"),
        ("Mine.Params = type('P', (MineParams,), {'__annotations__': {'more': int}, 'more': 1})", "Mine: is not what its source says"),
        ("In = []", "MineParams: its source cannot be read; run its cell again, or put the class into a file"),
        ("def inner():\n    class Mine(DPSGD):\n        pass\n    return Mine\nMine = inner()", "is defined inside a function or class"),
    ],
    ids=["a value", "a changed method", "changed parameters", "a lost cell", "a local class"],
)
def test_what_cannot_be_written_down_is_one_sentence(monkeypatch: pytest.MonkeyPatch, change: str, says: str) -> None:
    book = Notebook(monkeypatch)
    for text in (IMPORTS, PARAMS, PARTS, MINE, change):
        book.cell(text)
    with pytest.raises(UserError) as error:
        name_of(book.names["Mine"])
    assert says in str(error.value)


def test_classes_of_modules_go_by_the_names_that_they_have() -> None:
    from baselines.dp_gaussian import DPGaussian
    from fedsim.methods import DPSGD

    assert (name_of(DPGaussian), name_of(DPSGD)) == ("dp-gaussian", "fedsim.methods.dp_sgd:DPSGD")


def test_another_machine_has_the_file_from_the_run_folder_if_its_code_is_what_its_name_says(
    notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: Callable[[str], None]
) -> None:
    name = name_of(notebook.names["Mine"])
    first = source_hash(lookup(name))
    keep_sources([name, "dp-gaussian"], tmp_path / "methods")
    (kept,) = (tmp_path / "methods").iterdir()
    forged = kept.with_name("notebook_Mine_00000000.py")
    forged.write_text("raise SystemExit")
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "other"))
    forgotten(kept.stem)
    take_sources(tmp_path / "methods")
    assert [file.name for file in notebook_folder().iterdir()] == [kept.name]
    assert source_hash(lookup(name)) == first


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Forgets a module, as a new session does."""
    import sys

    return lambda stem: monkeypatch.delitem(sys.modules, stem)
