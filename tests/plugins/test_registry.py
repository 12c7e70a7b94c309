import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from plug_ins import GOOD, changed, line, without, write

from baselines.dp_gaussian import DPGaussian
from fedsim.errors import PluginError, UserError
from fedsim.methods.algorithm import Algorithm
from fedsim.plugins import registry
from fedsim.plugins.registry import known, lookup, name_of, register

MODULE = """
from baselines.dp_gaussian import DPGaussian


class Stranger(DPGaussian):
    pass
"""
ENTRY_POINT = "[fedsim.algorithms]\nstranger = stranger_package.algorithms:Stranger\n"


@pytest.fixture(autouse=True)
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stranger's package on the import path."""
    folder = tmp_path / "stranger_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "algorithms.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for module in [name for name in sys.modules if name.startswith("stranger_package")]:
        del sys.modules[module]


def test_the_shipped_algorithms_are_known_without_an_import() -> None:
    assert {"fedhypevae", "fedavg-cvae", "weight-noise"} <= set(known())
    assert lookup("weight-noise").name == "weight-noise"


def test_a_name_is_registered_once() -> None:
    @register("registered-once")
    class First(DPGaussian):
        pass

    assert lookup("registered-once") is First
    with pytest.raises(ValueError, match=r"'registered-once' is already registered by .*First"):

        @register("registered-once")
        class Second(DPGaussian):
            pass

    assert lookup("registered-once") is First


def test_a_module_that_is_imported_again_may_register_again() -> None:
    def define() -> type[Algorithm]:
        @register("reloaded")
        class Reloaded(DPGaussian):
            pass

        return Reloaded

    define()
    again = define()
    assert lookup("reloaded") is again


def test_an_unknown_name_gets_the_nearest_and_all_known_ones() -> None:
    with pytest.raises(UserError, match=r"grid.yaml:3: unknown algorithm 'fedhypvae'; did you mean 'fedhypevae'\?.*centralised") as raised:
        lookup("fedhypvae", "grid.yaml:3")
    assert "\n" not in str(raised.value)


def test_a_dotted_path_needs_no_registration(package: Path) -> None:
    found = lookup("stranger_package.algorithms:Stranger")
    assert found.__name__ == "Stranger"
    assert found.name == "stranger_package.algorithms:Stranger"


def test_an_entry_point_of_another_package_is_known(package: Path) -> None:
    info = package / "stranger_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger-package\nVersion: 1\n")
    (info / "entry_points.txt").write_text(ENTRY_POINT)
    assert "stranger" in known()
    assert lookup("stranger").__name__ == "Stranger"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no_such_package.module:Class", "cannot be imported"),
        ("fedsim.methods.algorithm:NoSuchClass", "cannot be imported"),
        ("fedsim.seeds:Seeds", "is not an Algorithm"),
        (":", "cannot be imported"),
    ],
)
def test_a_path_that_leads_nowhere_is_the_users_mistake(path: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        lookup(path)


def test_a_plug_in_that_breaks_as_it_is_imported_is_reported_with_the_innermost_line_of_its_own(package: Path) -> None:
    folder = package / "stranger_package"
    (folder / "algorithms.py").write_text("from stranger_package.inner import number\n")
    (folder / "inner.py").write_text("import json\n\nnumber = json.loads('half written')\n")
    with pytest.raises(PluginError, match=r"inner\.py:3: JSONDecodeError: Expecting value"):
        lookup("stranger_package.algorithms:Stranger")


def test_a_syntax_error_is_reported_with_its_line(folder: Path) -> None:
    (folder / "unfinished.py").write_text("import json\ndef build(:\n")
    with pytest.raises(
        PluginError, match=r"g.yaml:2: 'unfinished.py:MyMethod' cannot be imported \(unfinished.py:2: SyntaxError: "
    ) as raised:
        lookup("unfinished.py:MyMethod", "g.yaml:2")
    assert "\n" not in str(raised.value)


def test_a_file_needs_no_package(folder: Path) -> None:
    (folder / "below").mkdir()
    write(folder / "below", "plug_in_of_a_file", GOOD)
    found = lookup("below/plug_in_of_a_file.py:MyMethod")
    assert (found.__module__, found.name) == ("plug_in_of_a_file", "below/plug_in_of_a_file.py:MyMethod")
    assert lookup("plug_in_of_a_file:MyMethod") is found
    assert lookup(f"{folder}/below/plug_in_of_a_file.py:MyMethod") is found


def test_a_file_whose_name_is_another_modules_is_refused(folder: Path) -> None:
    write(folder, "json", GOOD)
    with pytest.raises(PluginError, match=r"'json.py' cannot be imported: its name belongs to .*json/__init__.py already; rename the file"):
        lookup("json.py:MyMethod")


def test_a_file_that_is_not_there_is_said_so(folder: Path) -> None:
    with pytest.raises(PluginError, match=r"there is no file 'below/none.py'"):
        lookup("below/none.py:MyMethod")


INCOMPLETE = {
    "no_loss": (without("loss"), r"MyMethod lacks loss; define loss\(self, model, batch\): Parts of the loss by name"),
    "nothing_made": (
        without("generator"),
        r"MyMethod has neither generator nor classifier; define one: generator\(self, server\): ",
    ),
    "other_params": (
        changed("Params = MyMethodParams", "Params = dict"),
        r"MyMethod has Params = <class 'dict'>; .*fedsim.methods.algorithm.Params",
    ),
    "no_tuple": (
        changed("    Params = MyMethodParams\n", '    Params = MyMethodParams\n    units = ("example")\n'),
        r"MyMethod has units = 'example'; give a tuple of example, group, client, such as \('example',\)",
    ),
    "no_trust": (
        changed("    Params = MyMethodParams\n", "    Params = MyMethodParams\n    trusts = ()\n"),
        r"MyMethod has trusts = \(\); give a tuple of aggregate, silo, such as \('aggregate',\)",
    ),
    "unknown_unit": (
        changed("    Params = MyMethodParams\n", '    Params = MyMethodParams\n    units = ("example", "row")\n'),
        r"MyMethod has units = \('example', 'row'\); give a tuple of example, group, client",
    ),
}


@pytest.mark.parametrize("mistake", INCOMPLETE)
def test_an_incomplete_class_is_reported_with_its_line_and_what_it_lacks(folder: Path, mistake: str) -> None:
    text, said = INCOMPLETE[mistake]
    name = write(folder, mistake, text)
    with pytest.raises(PluginError, match=f"{mistake}.py:{line(text, 'class MyMethod(')}: {said}"):
        lookup(name)


def test_classes_of_modules_go_by_the_names_that_they_have() -> None:
    from baselines.dp_gaussian import DPGaussian
    from fedsim.methods import DPSGD

    assert (name_of(DPGaussian), name_of(DPSGD)) == ("dp-gaussian", "fedsim.methods.dp_sgd:DPSGD")
    inner = type("Inner", (DPGaussian,), {"__qualname__": "function.<locals>.Inner"})
    with pytest.raises(UserError, match="is defined inside a function or class"):
        name_of(inner)
