"""Writes the files of a new method: its code, its test and its grid, which run at once."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

from fedsim.errors import UserError
from fedsim.plugins.registry import known

STARTER = Path(__file__).with_name("starter.py")
TEST_TEXT = '''"""What {name} must keep: the checks of `fedsim check --quick`."""

from fedsim.evidence.check.check import check_algorithm


def test_it_keeps_what_every_method_must_keep() -> None:
    findings = check_algorithm("{stem}:{cls}", quick=True)
    failed = [finding for finding in findings if finding.passed is False]
    assert failed == []
'''
GRID_TEXT = """# {name} beside what it has to beat; under a minute: fedsim bench {stem}.yaml
dataset: digits
algorithms:
  - {{name: "{stem}.py:{cls}", label: "{name}"}}
  - dp-gaussian
  - {{name: fedhypevae, params: {{rounds: 100}}}}
alpha: [1.0]
clients: [5]
epsilon: [1, 8]
seeds: [0]
evaluation: {{per_class: 100}}
"""


def new(name: str, *, out: Path = Path()) -> str:
    """Write a method to start from: its code, its test and its grid.

    They run without edits: ``fedsim.bench("my_method.yaml")``.

    Args:
        name: the name of the method, such as my-method.
        out: the folder of the files, which is made if there is none.

    Returns:
        The paths of the files, one per line.

    Raises:
        UserError: the name is not valid, or a file exists already; nothing is written then.
    """
    stem = name.replace("-", "_")
    cls = "".join(part[:1].upper() + part[1:] for part in stem.split("_"))
    paths = [out / file for file in (f"{stem}.py", f"test_{stem}.py", f"{stem}.yaml")]
    source = (
        STARTER.read_text("utf-8")
        .replace("MyMethodParams", f"{cls}Params")
        .replace('@register("my-method")', f'@register("{name}")')
    )
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name):
        raise UserError(
            "name",
            f"'{name}' is not valid",
            "give small letters, digits and dashes, as in my-method",
        )
    if taken := next((path for path in paths if os.path.lexists(path)), None):
        raise UserError(
            "name", f"{taken} is there already", "give another name, or another folder with `out`"
        )
    if (
        name in known()
        or stem in sys.modules
        or importlib.util.find_spec(stem)
        or re.search(rf"\b{cls}\b", source.replace("MyMethod", ""))
    ):
        raise UserError(
            "name",
            f"there is an algorithm, a module or a class of the name '{name}' already",
            "give another name",
        )
    names = {"name": name, "stem": stem, "cls": cls}
    out.mkdir(parents=True, exist_ok=True)
    for path, text in zip(
        paths,
        (source.replace("MyMethod", cls), TEST_TEXT.format(**names), GRID_TEXT.format(**names)),
        strict=True,
    ):
        path.write_text(text, "utf-8")
    return "\n".join(map(str, paths))
