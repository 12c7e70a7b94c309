"""Plug-ins: by which names a class is found, what its code is, and what it may claim."""

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from broken.tiny import Tiny
from cells import SHIPPED
from notebooks import IPython, Notebook
from plug_ins import GOOD, changed, line, without, write

from baselines.dp_gaussian import DPGaussian
from fedsim.errors import PluginError, UserError
from fedsim.methods import DPSGD
from fedsim.methods.algorithm import Algorithm
from fedsim.methods.messages import Task
from fedsim.plugins import registry
from fedsim.plugins.claims import allowed, check_of, may_leave
from fedsim.plugins.code_hash import is_shipped, own_files, place_of, source_hash
from fedsim.plugins.registry import (
    EXTERNAL,
    known,
    lookup,
    name_of,
    register,
    source_of_today,
)
from fedsim.privacy.plan import Claim

MODULE = "from baselines.dp_gaussian import DPGaussian\n\n\nclass Stranger(DPGaussian):\n    pass\n"


@pytest.fixture(autouse=True)
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget after a test what it registered."""
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


def test_name_is_registered_by_one_class_only() -> None:
    def define() -> type[Algorithm]:
        @register("registered-once")
        class First(DPGaussian):
            pass

        return First

    define()
    again = define()
    with pytest.raises(ValueError, match=r"'registered-once' is already registered by .*First"):
        register("registered-once")(type("Second", (DPGaussian,), {}))
    assert lookup("registered-once") is again


def test_unknown_name_suggests_the_nearest() -> None:
    expected = (
        r"grid.yaml:3: unknown algorithm 'fedhypvae'; did you mean 'fedhypevae'\?.*centralised"
    )
    with pytest.raises(UserError, match=expected) as raised:
        lookup("fedhypvae", "grid.yaml:3")
    assert "\n" not in str(raised.value)


def test_lookup_finds_paths_and_entry_points(package: Path) -> None:
    path = "stranger_package.algorithms:Stranger"
    assert lookup(path).name == path
    info = package / "stranger_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger-package\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[fedsim.algorithms]\nstranger = {path}\n")
    assert "stranger" in known()
    assert lookup("stranger").__name__ == "Stranger"


MISTAKES = {
    "no_such_package.module:Class": "cannot be imported",
    "fedsim.methods.algorithm:NoSuchClass": "cannot be imported",
    "fedsim.seeds:Seeds": "is not an Algorithm",
    ":": "cannot be imported",
    "unfinished.py:MyMethod": r"'unfinished.py:MyMethod' cannot be imported \(unfinished.py:2: "
    r"SyntaxError: ",
    "outer.py:MyMethod": r"inner\.py:3: JSONDecodeError: Expecting value",
    "json.py:MyMethod": r"'json.py' cannot be imported: its name belongs to "
    r".*json/__init__.py already; "
    r"rename the file",
    "below/none.py:MyMethod": "there is no file 'below/none.py'",
}


@pytest.mark.parametrize("path", MISTAKES)
def test_wrong_path_is_one_message_with_the_line_at_fault(folder: Path, path: str) -> None:
    for name, text in (
        ("unfinished", "import json\ndef build(:\n"),
        ("outer", "from inner import number\n"),
        ("inner", "import json\n\nnumber = json.loads('half written')\n"),
        ("json", GOOD),
    ):
        write(folder, name, text)
    with pytest.raises(UserError, match=f"^g.yaml:2: .*{MISTAKES[path]}") as raised:
        lookup(path, "g.yaml:2")
    assert "\n" not in str(raised.value)


def test_file_has_one_identity_under_all_its_names(folder: Path) -> None:
    (folder / "below").mkdir()
    write(folder / "below", "plug_in_of_a_file", GOOD)
    names = (
        "below/plug_in_of_a_file.py:MyMethod",
        "plug_in_of_a_file:MyMethod",
        f"{folder}/below/plug_in_of_a_file.py:MyMethod",
    )
    assert len({lookup(name) for name in names}) == 1
    assert place_of(lookup(names[2])) == names[0]


INCOMPLETE = {
    "no_loss": (without("loss"), "MyMethod has no method loss; define it"),
    "nothing_made": (without("generator"), "MyMethod has no method generator; define it"),
    "other_params": (
        changed("Params = MyMethodParams", "Params = dict"),
        r"MyMethod.Params is not derived .*algorithm.Params",
    ),
}


@pytest.mark.parametrize("mistake", INCOMPLETE)
def test_incomplete_class_is_reported_with_its_line(folder: Path, mistake: str) -> None:
    text, said = INCOMPLETE[mistake]
    with pytest.raises(PluginError, match=f"{mistake}.py:{line(text, 'class MyMethod(')}: {said}"):
        lookup(write(folder, mistake, text))


def test_class_is_named_by_entry_point_or_module() -> None:
    assert name_of(DPGaussian) == "dp-gaussian"
    assert name_of(DPSGD) == "fedsim.methods.dp_sgd:DPSGD"
    inner = type("Inner", (DPGaussian,), {"__qualname__": "function.<locals>.Inner"})
    with pytest.raises(
        UserError, match="class Inner: is defined inside a function or another class"
    ):
        name_of(inner)


# --- what its code is ---


def hashed(folder: Path, text: str, stem: str = "method") -> str:
    """Return the hash of a plug-in in a fresh import."""
    sys.modules.pop(stem, None)
    return source_hash(lookup(write(folder, stem, text)))


@pytest.mark.parametrize(
    "statement",
    [
        "import beside",
        "from beside import SCALE",
        "import part.inner",
        "from part import inner",
        "from part.inner import (\n    SCALE,\n)",
    ],
)
def test_hash_covers_a_file_and_all_that_it_imports(folder: Path, statement: str) -> None:
    (folder / "part").mkdir()
    (folder / "part" / "inner.py").write_text("from .deep import SCALE\n")
    (folder / "part" / "deep.py").write_text("SCALE = 1.0\n")
    (folder / "beside.py").write_text("from part.deep import SCALE\n")
    (folder / "unrelated.py").write_text("SCALE = 1.0\n")
    first = hashed(folder, f"{GOOD}\n{statement}\n")
    other = changed("beta: float = Field(0.5, ge=0)", "beta: float = Field(0.4, ge=0)")
    assert hashed(folder, f"{other}\n{statement}\n") != first
    (folder / "unrelated.py").write_text("SCALE = 2.0\n")
    assert hashed(folder, f"{GOOD}\n{statement}\n") == first
    (folder / "part" / "deep.py").write_text("SCALE = 2.0\n")
    assert hashed(folder, f"{GOOD}\n{statement}\n") != first


def test_hash_covers_files_of_one_name_in_several_folders(folder: Path) -> None:
    (folder / "sub").mkdir()
    hashes = set()
    for beside, below in ((1, 1), (2, 1), (1, 3)):
        (folder / "helpers.py").write_text(f"SCALE = {beside}\n")
        (folder / "sub" / "helpers.py").write_text(f"SCALE = {below}\n")
        hashes.add(hashed(folder, f"{GOOD}\nfrom sub.helpers import SCALE\n"))
    assert len(hashes) == 3


def test_hash_leaves_out_a_template_that_is_not_python(package: Path) -> None:
    cls = lookup("stranger_package.algorithms:Stranger")
    template = package / "stranger_package" / "template" / "__init__.py"
    template.parent.mkdir()
    template.write_text("import {{ name }}\n")
    assert template not in own_files(cls)


def test_hash_ignores_layout_and_prose(folder: Path) -> None:
    original = hashed(folder, GOOD)
    documented = changed(
        "class MyMethod(DPSGD):",
        'class MyMethod(DPSGD):\n    """Another docstring; from os import path."""\n',
    )
    assert hashed(folder, f"# A comment.\n\n{documented}") == original
    assert hashed(folder, ast.unparse(ast.parse(GOOD))) == original
    assert hashed(folder, changed("Field(0.5, ge=0)", "Field(0.25, ge=0)")) != original


def test_hashing_imports_nothing(folder: Path) -> None:
    (folder / "never_imported.py").write_text("raise AssertionError\n")
    text = f"{GOOD}\n\ndef late():\n    import never_imported\n"
    cls = lookup(write(folder, "method", text))
    assert own_files(cls) == {folder / "method.py", folder / "never_imported.py"}
    assert "never_imported" not in sys.modules


def test_file_is_hashed_like_its_class_without_running(folder: Path) -> None:
    (folder / "beside.py").write_text("import baselines.dp_gaussian\n")
    name = write(folder, "method", f"{GOOD}\nimport beside\n")
    assert source_of_today(name) is not None
    assert "method" not in sys.modules
    assert source_of_today(name) == source_hash(lookup(name))


@pytest.mark.parametrize("name", ["stranger_package.algorithms:Stranger", "dp-gaussian", EXTERNAL])
def test_source_of_today_is_the_hash_of_the_class(package: Path, name: str) -> None:
    assert source_of_today(name) == source_hash(lookup(name))


@pytest.mark.parametrize("name", ["gone.py:Mine", "gone:Mine", "__main__:Gone", "gone"])
def test_missing_code_has_no_source_of_today(folder: Path, name: str) -> None:
    assert source_of_today(name) is None


def test_shipped_algorithms_have_hashes_by_module() -> None:
    classes = [lookup(name) for name in SHIPPED]
    hashes = {source_hash(cls) for cls in classes}
    assert len(hashes) == len({cls.__module__ for cls in classes})
    assert place_of(DPGaussian) == "baselines.dp_gaussian:DPGaussian"


def test_folder_named_like_a_shipped_one_is_not_shipped(folder: Path) -> None:
    (folder / "baselines").mkdir()
    write(folder / "baselines", "impostor", GOOD)
    cls = lookup("baselines/impostor.py:MyMethod")
    assert not is_shipped(cls)
    assert place_of(cls) == "baselines/impostor.py:MyMethod"


@pytest.mark.parametrize("kind", [Notebook, IPython])
def test_hash_of_a_notebook_class_is_that_of_its_cell(
    monkeypatch: pytest.MonkeyPatch, kind: Callable[..., Any]
) -> None:
    book = kind(monkeypatch)
    hashes = []
    for scale in (1, 2, 1):
        book.cell("from baselines.dp_gaussian import DPGaussian")
        book.cell(f"class Mine(DPGaussian):\n    def scope(self):\n        return 'scale {scale}'")
        hashes.append(source_hash(book.names["Mine"]))
    assert hashes[0] == hashes[2]
    assert hashes[0] != hashes[1]
    assert place_of(book.names["Mine"]) == "interpreter:Mine"


# --- what it may claim ---


def instance_of(cls: type[Any]) -> Algorithm:
    return cls(cls.Params(), Task(8, 3, 4))  # type: ignore[no-any-return]


def test_only_shipped_classes_are_proved() -> None:
    for name in SHIPPED:
        assert allowed("proved", instance_of(lookup(name))) == "proved"
    for cls in (Tiny, type("Same", (DPGaussian,), {})):
        assert allowed("proved", instance_of(cls)) == "stated"


def test_unknown_claim_is_refused() -> None:
    expected = r"'checked' is not a claim; let claim\(\) return 'stated' if its ε is a theorem"
    with pytest.raises(UserError, match=expected):
        allowed("checked", instance_of(Tiny))  # type: ignore[arg-type]


def test_proved_or_checked_claims_may_be_released() -> None:
    may = [
        (claim, check)
        for claim in get_args(Claim)
        for check in (None, "passed", "failed")
        if may_leave(claim, check)
    ]  # type: ignore[arg-type]
    assert may == [("proved", None), ("proved", "passed"), ("stated", "passed")]


QUICK = {"full": False}
OWN = {"strength": 1.0, "rounds": 40}
FULL = {"unit": "example", "trust": "aggregate", "full": True, "params": OWN, "tried": OWN}
OTHER = {"params": {"strength": 0.0}, "tried": {"strength": 0.0}}
SHORTER = {"params": {"strength": 1.0, "rounds": 9}, "tried": {"strength": 1.0, "rounds": 3}}
NARROWED = {"tried": {"strength": 0.0, "rounds": 3}}


@pytest.mark.parametrize(
    ("checks", "said"),
    [
        ([], None),
        # The last check of the same parameters counts.
        ([("failed", {}), ("passed", {})], "passed"),
        ([("passed", {}), ("failed", {})], "failed"),
        # Other parameters do not pass for these; if they fail, these must have passed.
        ([("passed", OTHER)], None),
        ([("failed", OTHER)], "failed"),
        ([("passed", {}), ("failed", OTHER)], "passed"),
        # Another setting does not pass for this one; if these parameters fail there, none passes.
        ([("passed", {"trust": "silo"})], None),
        ([("failed", {"unit": "client"})], "failed"),
        ([("passed", {}), ("failed", {"unit": "client"})], None),
        # A quick check can only refute.
        ([("passed", QUICK)], None),
        ([("failed", QUICK), ("passed", QUICK)], "failed"),
        ([("failed", QUICK), ("passed", {})], "passed"),
        # Numbers of rounds and steps do not count.
        ([("passed", SHORTER)], "passed"),
        # A check passes what it tried, and fails what it tried and what was asked for.
        ([("passed", NARROWED)], None),
        ([("passed", {}), ("failed", NARROWED)], "failed"),
    ],
)
def test_what_checks_say_of_parameters(
    checks: list[tuple[str, dict[str, Any]]], said: str | None
) -> None:
    lines = [FULL | other | {"ended": ended} for ended, other in checks]
    assert check_of(lines, "example", "aggregate", OWN) == said


def test_check_without_tried_params_passes_nothing() -> None:
    old = {name: value for name, value in FULL.items() if name != "tried"}
    assert check_of([old | {"ended": "passed"}], "example", "aggregate", OWN) is None
    assert check_of([old | {"ended": "failed"}], "example", "aggregate", OWN) == "failed"
