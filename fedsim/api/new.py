"""Writes three files for a new method: its code, its test and its grid.

The code is a copy of ``starter.py`` under the new name. All three run without edits.
"""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import sys
from pathlib import Path

from fedsim.errors import UserError
from fedsim.plugins.registry import known

STARTER = Path(__file__).with_name("starter.py")
TEST_TEXT = '''"""Runs the checks of `fedsim check --quick` on {name}."""

from fedsim.evidence.check.check import check_algorithm


def test_no_check_finds_a_mistake() -> None:
    findings = check_algorithm("{stem}:{cls}", quick=True)
    failed = [finding for finding in findings if finding.passed is False]
    assert failed == []
'''
GRID_TEXT = """# Compares {name} with two other methods, in less than a minute:
#     fedsim bench {stem}.yaml
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
        out: the folder of the files, which is created if it does not exist.

    Returns:
        The paths of the files, one per line.

    Raises:
        UserError: the name is not valid or is taken, or one of the files exists already. Nothing
            is written then.
    """
    stem = name.replace("-", "_")
    cls = "".join(word[:1].upper() + word[1:] for word in stem.split("_"))
    source = STARTER.read_text("utf-8").replace('@register("my-method")', f'@register("{name}")')
    names = {"name": name, "stem": stem, "cls": cls}
    texts = {
        out / f"{stem}.py": source.replace("MyMethod", cls),
        out / f"test_{stem}.py": TEST_TEXT.format(**names),
        out / f"{stem}.yaml": GRID_TEXT.format(**names),
    }
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name):
        raise UserError(
            "name",
            f"'{name}' is not valid",
            "begin with a small letter, and use small letters, digits and single dashes, as in "
            "my-method2",
        )
    for path in texts:
        if os.path.lexists(path):
            raise UserError(
                str(path), "already exists", "give another name, or another folder with `out`"
            )
    # A new file must not hide a module, and a new class must not hide a name that the starter uses,
    # such as Batch.
    is_module = stem in sys.modules or importlib.util.find_spec(stem)
    is_taken = name in known() or is_module or keyword.iskeyword(cls)
    if is_taken or re.search(rf"\b{cls}\b", source.replace("MyMethod", "")):
        raise UserError(
            "name",
            f"'{name}' is already the name of an algorithm, a module or a class",
            "give another name",
        )
    out.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text, "utf-8")
    return "\n".join(map(str, texts))
