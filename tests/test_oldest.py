from configparser import ConfigParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def test_the_oldest_versions_that_are_tried_are_those_that_setup_cfg_allows() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    asked = [setup["options"]["install_requires"], setup["options.extras_require"]["hf"]]
    allowed = [Requirement(line) for text in asked for line in text.split("\n") if line]
    lines = [line for line in (ROOT / ".ci" / "oldest.txt").read_text().splitlines() if not line.startswith("#")]
    tried = {name: Version(number) for name, _, number in (line.partition("==") for line in lines)}
    assert {requirement.name: Version(next(iter(requirement.specifier)).version) for requirement in allowed} == {
        name: number for name, number in tried.items() if name != "pyarrow"
    }
