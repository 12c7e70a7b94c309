"""A method to start from: its file, its test and its grid, which run at once, unedited."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from fedsim.errors import UserError
from fedsim.plugins.registry import known

STARTER = Path(__file__).with_name("starter.py")
TEST_TEXT = '''"""What {name} must keep: the checks of `fedsim check --quick`."""

from fedsim.evidence.check.check import check_algorithm


def test_it_keeps_what_every_method_must_keep() -> None:
    failed = [finding for finding in check_algorithm("{stem}:{cls}", quick=True) if finding.passed is False]
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
    """Write a method to start from: a file, its test and its grid.

    They run as they are: ``fedsim bench my_method.yaml``.

    Args:
        name: of the method, such as my-method.
        out: the folder of the files; made if there is none.

    Returns:
        The files, a line each.

    Raises:
        UserError: the name is not valid, or a file is there already; nothing is written then.
    """
    stem = name.replace("-", "_")
    cls = "".join(part[:1].upper() + part[1:] for part in stem.split("_"))
    paths = [out / file for file in (f"{stem}.py", f"test_{stem}.py", f"{stem}.yaml")]
    source = STARTER.read_text("utf-8").replace("MyMethodParams", f"{cls}Params")
    _check(name, stem, cls, paths, source)
    source = source.replace('@register("my-method")', f'@register("{name}")').replace("MyMethod", cls)
    names = {"name": name, "stem": stem, "cls": cls}
    texts = (source, TEST_TEXT.format(**names), GRID_TEXT.format(**names))
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text, "utf-8")
    except OSError as error:
        for path in paths:  # none of which was there before
            with suppress(OSError):
                path.unlink()
        raise UserError("out", f"{out} cannot be written ({error.strerror})", "give another folder") from error
    return "\n".join(map(str, paths))


def _check(name: str, stem: str, cls: str, paths: list[Path], source: str) -> None:
    """Check that the name makes a module of its own and that no file is in the way."""
    if not all(word.isascii() and word.isidentifier() and not keyword.iskeyword(word) for word in (stem, cls)):
        raise UserError("name", f"'{stem}' is not a module's name", "give letters, digits and dashes, as in my-method")
    if taken := next((path for path in paths if os.path.lexists(path)), None):
        raise UserError("name", f"{taken} is there already", "give another name, or another folder with `out`")
    if name in known():
        raise UserError("name", "there is an algorithm of that name already", "give another name")
    if stem in sys.modules or importlib.util.find_spec(stem):  # which raises for __main__
        raise UserError("name", f"Python knows another module '{stem}'", "give another name")
    if cls != "MyMethod" and re.search(rf"\b{cls}\b", source):
        raise UserError("name", f"the starter uses '{cls}' itself", "give another name")
