"""A method to start from: its file, its test and its grid, which run at once, unedited."""

from __future__ import annotations

import importlib.util
import inspect
import keyword
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedsim.api.describe import describe, plain
from fedsim.errors import UserError
from fedsim.methods.algorithm import Algorithm
from fedsim.plugins.registry import known, lookup, outline
from fedsim.privacy.plan import Trust, Unit

STARTER = Path(__file__).with_name("starter.py")
BESIDE = {"dp-gaussian": "dp-gaussian", "fedhypevae": "{name: fedhypevae, params: {rounds: 100}}"}
"""What a new method's grid compares it with, and how the grid has it."""
TEST_TEXT = '''"""What {name} must keep: the checks of `fedsim check --quick`."""

from fedsim.evidence.check.check import check_algorithm


def test_it_keeps_what_every_method_must_keep() -> None:
    failed = [finding for finding in check_algorithm("{stem}:{cls}", quick=True) if finding.passed is False]
    assert failed == []
'''
GRID_TEXT = """# {name} beside what it has to beat; under a minute: fedsim bench --grid {stem}.yaml
dataset: digits
algorithms:
  - {{name: "{stem}.py:{cls}", label: "{name}"}}
{others}alpha: [1.0]
clients: [5]
epsilon: [1, 8]
seeds: [0]
unit: {unit}
trust: {trust}
evaluation: {{per_class: 100}}
"""
_LONGEST = 255
"""Letters of a file's name, on the usual file systems."""


@dataclass(frozen=True)
class Naming:
    """What a method is called.

    Attributes:
        name: as registered: ``my-method``.
        stem: of its files, and its module: ``my_method``.
        cls: its class: ``MyMethod``.
    """

    name: str
    stem: str
    cls: str


@dataclass(frozen=True)
class Start:
    """What a method starts as.

    Attributes:
        source: of its file.
        unit, trust: a setting that it supports.
    """

    source: str
    unit: Unit
    trust: Trust


def write_method(name: str, origin: str | None, folder: Path) -> list[Path]:
    """Write ``my_method.py``, ``test_my_method.py`` and ``my_method.yaml``.

    Args:
        name: what the method is called.
        origin: start from a copy of this algorithm; None: from the starter.
        folder: where the files go; made if there is none.

    Returns:
        The files.

    Raises:
        UserError: the name or the origin does not do, or a file is there already; nothing is written then.
    """
    stem = name.replace("-", "_")
    naming = Naming(name, stem, "".join(part[:1].upper() + part[1:] for part in stem.split("_")))
    paths = [folder / file for file in (f"{stem}.py", f"test_{stem}.py", f"{stem}.yaml")]
    _check(naming, paths)
    start = _starter(naming) if origin is None else _start_from(origin, naming)
    texts = [start.source, TEST_TEXT.format(**vars(naming)), _grid(naming, start)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _all_or_none(paths):
            for path, text in zip(paths, texts, strict=True):
                path.write_text(text, "utf-8")
    except OSError as error:
        raise UserError(str(folder), f"cannot be written ({error.strerror})", "give another folder with --out") from error
    return paths


@contextmanager
def _all_or_none(paths: list[Path]) -> Iterator[None]:
    """Remove the files, none of which was there before, if the block that writes them does not end well."""
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise


def _check(naming: Naming, paths: list[Path]) -> None:
    """Check that the name makes a module of its own and that no file is in the way."""
    where = f"fedsim new {naming.name}"
    if not all(word.isascii() and word.isidentifier() and not keyword.iskeyword(word) for word in (naming.stem, naming.cls)):
        raise UserError(where, f"'{naming.stem}' is not a module's name", "give letters, digits and dashes, as in my-method")
    if max(len(path.name) for path in paths) > _LONGEST:
        raise UserError(where, f"a file's name would have more than {_LONGEST} letters", "give a shorter name")
    if taken := next((path for path in paths if os.path.lexists(path)), None):
        raise UserError(where, f"{taken} is there already", "give another name, or another folder with --out")
    if naming.name in known():
        raise UserError(where, "there is an algorithm of that name already", "give another name")
    if naming.stem in sys.modules or importlib.util.find_spec(naming.stem):  # which raises for __main__
        raise UserError(where, f"Python knows another module '{naming.stem}'", "give another name")


def _starter(naming: Naming) -> Start:
    source = STARTER.read_text("utf-8").replace("MyMethodParams", f"{naming.cls}Params")
    if naming.cls != "MyMethod":
        _check_unused(naming, source, "the starter")
    return Start(_renamed(source, "my-method", "MyMethod", naming), "example", "aggregate")


def _start_from(origin: str, naming: Naming) -> Start:
    """A copy of an algorithm, in the first unit and trust that it supports."""
    cls, described = lookup(origin, "--from"), describe(origin, "--from")
    unit, trust = next(key for key in described.claims if key not in described.refused)
    return Start(_copied(cls, naming), unit, trust)


def _grid(naming: Naming, start: Start) -> str:
    beside = [entry for name, entry in BESIDE.items() if name in known() and (start.unit, start.trust) not in describe(name).refused]
    return GRID_TEXT.format(**vars(naming), others="".join(f"  - {entry}\n" for entry in beside), unit=start.unit, trust=start.trust)


def _copied(cls: type[Algorithm], naming: Naming) -> str:
    """The source of a class's module under the new names, below what its base class asks of it."""
    try:
        source = Path(inspect.getsourcefile(cls) or "").read_text("utf-8")
    except (OSError, TypeError) as error:
        raise UserError("--from", f"the source of {cls.__name__} cannot be read", "name another algorithm") from error
    if re.search(r"^from \.", source, re.M):
        raise UserError(
            "--from", f"{cls.__module__} imports its neighbours relatively, so it does not run elsewhere", "name another algorithm"
        )
    _check_unused(naming, source, cls.__module__)
    source = re.sub(r'^@register\("([^"]*)"\)\n', lambda match: match[0] if match[1] == cls.name else "", source, flags=re.M)
    if cls.Params.__module__ == cls.__module__:
        source = re.sub(rf"\b{cls.Params.__name__}\b", f"{naming.cls}Params", source)
    return contract(cls) + _renamed(source, cls.name, cls.__name__, naming)


def _check_unused(naming: Naming, source: str, origin: str) -> None:
    """Check that what a method starts from has no class of its name."""
    if re.search(rf"\b{naming.cls}\b", source):
        raise UserError(f"fedsim new {naming.name}", f"{origin} uses '{naming.cls}' itself", "give another name")


def _renamed(source: str, name: str, cls: str, naming: Naming) -> str:
    """A module's source with another registered name and another class name."""
    source = source.replace(f'@register("{name}")', f'@register("{naming.name}")')
    return re.sub(rf"\b{cls}\b", naming.cls, source)


def contract(cls: type[Algorithm]) -> str:
    """What the class of fedsim that an algorithm derives from asks of it, as comment lines, from its docstrings."""
    kind = next(base for base in cls.__mro__[1:] if base.__module__.startswith("fedsim."))
    wanted = [*sorted(getattr(kind, "__abstractmethods__", ())), "generator" if cls.generates() else "classifier"]
    paragraphs = [inspect.getdoc(kind) or "", *(outline(kind, method) for method in wanted)]
    lines = [line for text in "\n".join(paragraphs).splitlines() for line in textwrap.wrap(plain(text), 136) or [""]]
    return "".join(f"# {line}".rstrip() + "\n" for line in [f"What {kind.__name__} asks of this file:", "", *lines]) + "\n"
