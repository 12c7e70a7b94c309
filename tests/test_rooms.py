"""The arrows between rooms, and names that occur once, read from the syntax trees of all files."""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import fedsim

ROOT = Path(fedsim.__file__).parent
FACE = "fedsim"
"""``fedsim/__init__.py`` names what users import, from any room, and loads it when it is used."""
AUTHORS = "fedsim.methods"
"""The same for authors of methods, who register them, too."""
ROOMS = (
    ("cli",),
    ("commands",),
    ("api",),
    ("runs",),
    ("report",),
    ("evidence",),
    ("results",),
    ("evaluation",),
    ("training",),
    ("grid",),
    ("plugins",),
    ("methods",),
    ("privacy", "partition"),
    ("models", "data"),
    ("batch", "json_lines"),
    ("device", "files", "words", "errors", "interrupts", "seeds"),
)
"""From the roof to the ground: a file imports its own room and those on the floors below."""


Arrow = tuple[str, str]


@cache
def modules() -> dict[str, Path]:
    paths = ((path.relative_to(ROOT.parent).with_suffix(""), path) for path in ROOT.rglob("*.py"))
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths}


def imported(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Modules of fedsim with the imported names; late and typing-only imports count too."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or "", tuple(alias.name for alias in node.names)


@cache
def arrows() -> set[Arrow]:
    known = modules()
    edges = set()
    for source, path in known.items():
        for module, names in imported(path):
            if module.partition(".")[0] == FACE:
                edges |= {
                    (source, f"{module}.{name}" if f"{module}.{name}" in known else module)
                    for name in names
                } or {(source, module)}
    return {
        (source, target)
        for source, target in edges
        if FACE not in (source, target) and source != AUTHORS
    }


def on_circles(edges: Iterable[Arrow]) -> set[str]:
    """Return the nodes on a circle or between two circles.

    Nodes without an arrow in or out are removed again and again, and the others are left.
    """
    left = {(source, target) for source, target in edges if source != target}
    while True:
        ends = {source for source, _ in left} & {target for _, target in left}
        kept = {(source, target) for source, target in left if source in ends and target in ends}
        if kept == left:
            return ends
        left = kept


def room(module: str) -> str:
    return module.split(".")[1]


def test_no_files_import_each_other_in_a_circle() -> None:
    assert on_circles(arrows()) == set()


def test_every_file_is_in_a_room_with_a_floor() -> None:
    named = [name for floor in ROOMS for name in floor]
    assert sorted(named) == sorted({room(module) for module in modules() if module != FACE})


def test_architecture_page_draws_every_room() -> None:
    page = (ROOT.parent / "docs" / "architecture.md").read_text()
    floors: list[tuple[str, ...]] = []
    for number, name in re.findall(r"^([ \d]{2})  (\w+) +\S", page, re.M):
        if number.strip():
            floors = [*floors, (name,)]
        else:
            floors = [*floors[:-1], (*floors[-1], name)]
    assert tuple(floors) == ROOMS


def test_files_import_only_their_room_and_lower_floors() -> None:
    floor = {name: height for height, names in enumerate(reversed(ROOMS)) for name in names}
    up = {(a, b) for a, b in arrows() if room(a) != room(b) and floor[room(a)] <= floor[room(b)]}
    assert up == set()


def test_only_one_room_imports_ray() -> None:
    known = {
        room(source)
        for source, path in modules().items()
        for module, _ in imported(path)
        if module.partition(".")[0] == "ray"
    }
    assert known == {"runs"}


def test_baselines_use_only_the_names_for_authors() -> None:
    ours = [*ROOT.rglob("*.py"), *(ROOT.parent / "algorithms").rglob("*.py")]
    assert {path.name for path in ours for module, _ in imported(path) if module == AUTHORS} == {
        "starter.py"
    }
    theirs = {
        module for path in (ROOT.parent / "baselines").rglob("*.py") for module, _ in imported(path)
    }
    assert {module for module in theirs if module.startswith("fedsim")} == {AUTHORS}
