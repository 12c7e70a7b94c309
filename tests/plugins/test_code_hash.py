import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cells import SHIPPED, small_grid
from notebooks import IPython, Notebook
from plug_ins import GOOD, changed, write

from algorithms.fedhypevae import FedHypeVAE
from baselines.dp_gaussian import DPGaussian
from fedsim.grid.cells import resolve
from fedsim.plugins.code_hash import is_shipped, own_files, place_of, source_hash
from fedsim.plugins.registry import lookup


def hashed(folder: Path, text: str, stem: str = "method") -> str:
    """The hash of a plug-in in a fresh import."""
    sys.modules.pop(stem, None)
    return source_hash(lookup(write(folder, stem, text)))


def test_a_plug_in_s_text_is_its_code(folder: Path) -> None:
    first = hashed(folder, GOOD)
    assert hashed(folder, changed('"kl": self.params.beta * unit * kl', '"kl": 2 * self.params.beta * unit * kl')) != first
    assert hashed(folder, changed("beta: float = Field(0.5, ge=0)", "beta: float = Field(0.4, ge=0)")) != first
    assert hashed(folder, GOOD) == first


@pytest.mark.parametrize(
    "statement",
    ["import beside", "from beside import SCALE", "import part.inner", "from part import inner", "from part.inner import (\n    SCALE,\n)"],
)
def test_files_beside_it_that_it_imports_count_one_from_another(folder: Path, statement: str) -> None:
    (folder / "part").mkdir()
    (folder / "part" / "inner.py").write_text("from .deep import SCALE\n")
    (folder / "part" / "deep.py").write_text("SCALE = 1.0\n")
    (folder / "beside.py").write_text("from part.deep import SCALE\n")
    (folder / "unrelated.py").write_text("SCALE = 1.0\n")
    first = hashed(folder, f"{GOOD}\n{statement}\n")
    (folder / "unrelated.py").write_text("SCALE = 2.0\n")
    assert hashed(folder, f"{GOOD}\n{statement}\n") == first
    (folder / "part" / "deep.py").write_text("SCALE = 2.0\n")
    assert hashed(folder, f"{GOOD}\n{statement}\n") != first


def test_nothing_is_imported_to_be_hashed(folder: Path) -> None:
    (folder / "never_imported.py").write_text("raise AssertionError\n")
    found = lookup(write(folder, "method", GOOD + "\n\ndef late():\n    import never_imported\n"))
    assert own_files(found) == {folder / "method.py", folder / "never_imported.py"}
    assert "never_imported" not in sys.modules


def test_a_base_class_of_its_own_in_another_module_counts(folder: Path) -> None:
    base = GOOD.replace("class MyMethod(", "class Base(")
    (folder / "base_of_method.py").write_text(base)
    text = "from base_of_method import Base\n\n\nclass MyMethod(Base):\n    pass\n"
    first = hashed(folder, text)
    (folder / "base_of_method.py").write_text(base.replace("self.params.beta * unit", "3 * self.params.beta * unit"))
    sys.modules.pop("base_of_method")
    assert hashed(folder, text) != first


def test_the_code_of_a_shipped_algorithm_is_its_own_file_and_those_that_it_imports() -> None:
    assert len({source_hash(lookup(name)) for name in SHIPPED}) == len({lookup(name).__module__ for name in SHIPPED})


def ids(name: str) -> tuple[str, str]:
    (variant,) = resolve(small_grid({"name": name})).variants
    return variant.identity, variant.source


def test_two_files_with_one_stem_in_different_folders_share_no_identity(folder: Path) -> None:
    found = []
    for below in ("a", "b"):
        (folder / below).mkdir()
        write(folder / below, "twin", GOOD)
        sys.modules.pop("twin", None)
        sys.path[:] = [entry for entry in sys.path if Path(entry).name not in ("a", "b")]
        found.append(ids(f"{below}/twin.py:MyMethod"))
    assert found[0][1] == found[1][1]
    assert [identity for identity, _ in found] == ["a/twin.py:MyMethod", "b/twin.py:MyMethod"]


def test_one_file_has_one_identity_however_a_grid_names_it(folder: Path) -> None:
    write(folder, "one_file", GOOD)
    assert ids("one_file.py:MyMethod") == ids(f"{folder}/one_file.py:MyMethod") == ids("one_file:MyMethod")
    assert ids("one_file.py:MyMethod")[0] == "one_file.py:MyMethod"


def test_a_shipped_class_is_named_by_its_module_wherever_fedsim_lies() -> None:
    assert place_of(FedHypeVAE) == "algorithms.fedhypevae:FedHypeVAE"
    assert is_shipped(DPGaussian)


def test_a_folder_that_is_called_like_a_shipped_one_is_not_shipped(folder: Path) -> None:
    (folder / "baselines").mkdir()
    write(folder / "baselines", "impostor", GOOD)
    found = lookup("baselines/impostor.py:MyMethod")
    assert not is_shipped(found)
    assert place_of(found) == "baselines/impostor.py:MyMethod"


@pytest.mark.parametrize("made", [Notebook, IPython])
def test_the_code_of_a_notebook_s_class_is_its_cell(monkeypatch: pytest.MonkeyPatch, made: Callable[..., Any]) -> None:
    book, cells = made(monkeypatch), []
    for scale in (1, 2, 1):
        book.cell("from baselines.dp_gaussian import DPGaussian")
        book.cell(f"class Mine(DPGaussian):\n    def scope(self):\n        return 'scale {scale}'")
        cells.append(source_hash(book.names["Mine"]))
    assert cells[0] == cells[2] != cells[1]
    assert place_of(book.names["Mine"]) == "interpreter:Mine"


def test_a_class_without_a_source_is_itself_and_no_other() -> None:
    def typed() -> type[DPGaussian]:
        names: dict[str, Any] = {"__name__": "console", "DPGaussian": DPGaussian}
        exec("class Typed(DPGaussian):\n    pass\n", names)
        return names["Typed"]  # type: ignore[no-any-return]

    first, second = typed(), typed()
    assert source_hash(first) == source_hash(first) != source_hash(second)
    assert place_of(first) == "interpreter:Typed"
