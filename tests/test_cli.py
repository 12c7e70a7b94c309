"""The adapter: every command is a function of the API."""

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from benches import PATIENCE, Done, interruptible

from fedsim import __version__
from fedsim.cli import COMMANDS

Fedsim = Callable[..., Done]
FUNCTIONS = {
    function.__name__: function for functions in COMMANDS.values() for function in functions
}


@pytest.fixture
def fedsim(folder: Path, command: Callable[..., Done]) -> Callable[..., Done]:
    """Runs the command's entry point in a folder of its own."""
    return command


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_is_an_argument_or_an_option_with_its_help(
    fedsim: Fedsim, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = fedsim(name, "--help").stdout
    entries = re.findall(r"^    (\w+): ", inspect.getdoc(FUNCTIONS[name]) or "", re.M)
    parameters = [
        parameter
        for parameter in inspect.signature(FUNCTIONS[name]).parameters
        if parameter != "self"
    ]
    assert {*parameters} <= {*entries}
    shown = {
        word.removeprefix("--").removesuffix("...").lower().replace("-", "_")
        for word in re.findall(r"│ +(?:\* +)?(\S+)", text)
    }
    python_alone = {"bench": {"algorithms"}}.get(name, set())
    assert {p.rstrip("_") for p in parameters} - {
        *shown,
        *(f"{word}s" for word in shown),
    } == python_alone


def test_a_grid_is_an_argument_or_an_option_and_not_both(fedsim: Fedsim) -> None:
    both, none = fedsim("bench", "a.yaml", "--grid", "b.yaml"), fedsim("bench")
    assert (both.returncode, none.returncode) == (2, 2)
    assert both.stderr == "fedsim: GRID: a.yaml and --grid b.yaml are both given; give one\n"
    assert "GRID: is missing" in none.stderr
    assert (
        "none.yaml: cannot be read (no such file or directory)"
        in fedsim("bench", "--grid", "none.yaml").stderr
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["account"], "one of --epsilon and --sigma is needed"),
        (["bench", "g.yaml", "--set", "epsilon=[-3]"], "--set epsilon[0]: "),
        (["check", "dp-gaussian", "--param", "rankk=3"], "params.rankk: unknown key 'rankk'"),
        (["synth", "run", "--out", "x.csv"], "run: there are no results here"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_option_and_exit_code_2(
    fedsim: Fedsim, arguments: list[str], said: str
) -> None:
    Path("g.yaml").write_text("algorithms: [dp-gaussian]\n")
    done = fedsim(*arguments)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert said in done.stderr
    assert [path.name for path in Path().iterdir()] == ["g.yaml"]


@pytest.mark.parametrize("value", ["true", "No"])
def test_a_value_behind_a_switch_is_told_in_one_line(fedsim: Fedsim, value: str) -> None:
    Path("g.yaml").write_text("algorithms: [dp-gaussian]\n")
    done = fedsim("bench", "g.yaml", "--dry-run", value)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"fedsim: --dry-run: is followed by '{value}', and takes no value; give --dry-run alone, "
        "or leave it out\n"
    )


def test_an_interruption_has_one_word_and_exit_code_130(tmp_path: Path) -> None:
    (tmp_path / "stop.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    script = (
        "import sys; sys.argv = ['fedsim', 'algorithms', 'stop.py:Any']; from fedsim.cli "
        "import main; main()"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        preexec_fn=interruptible,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "interrupted\n", "")


def test_version_tells_what_a_paper_cites(fedsim: Fedsim) -> None:
    told = re.fullmatch(
        r"fedsim (\S+)(, revision [0-9a-f]{12}(-dirty)?)?\n", fedsim("--version").stdout
    )
    assert told is not None
    assert told[1] == __version__


def test_help_loads_neither_torch_nor_ray_nor_pandas(tmp_path: Path) -> None:
    script = (
        "import sys; sys.argv = ['fedsim', '--help']\nfrom fedsim.cli import main\ntry:\n    "
        "main()\nexcept SystemExit:\n    pass\n"
    )
    check = (
        "print([name for name in ('torch', 'ray', 'pandas', 'matplotlib', 'transformers', "
        "'medmnist') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script + check],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"
