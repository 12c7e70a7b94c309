"""The command line: its commands, their help, and its mistakes."""

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from benches import Done, assert_refused, interruptible, run_process
from processes import FEDSIM

import fedsim
from fedsim import __version__
from fedsim.commands import app

Command = Callable[..., Done]
COMMANDS: dict[str, Callable[..., object]] = {
    name: app[name].default_command for name in app if not name.startswith("-")
}
every_command = pytest.mark.parametrize("name", COMMANDS)
PYTHON_ALONE = {"bench": {"algorithms"}}
"""Parameters of API functions that no option sets."""


@every_command
def test_command_has_every_parameter_of_its_function(name: str) -> None:
    function = getattr(fedsim.Run, name, None) or getattr(fedsim, name)
    expected = {*inspect.signature(function).parameters} - PYTHON_ALONE.get(name, set())
    if "self" in expected:
        expected = expected - {"self"} | {"run"}
    assert expected <= {*inspect.signature(COMMANDS[name]).parameters}


@every_command
def test_help_explains_every_parameter_and_shows_an_example(
    command: Command, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = command(name, "--help").stdout
    assert f"Example: fedsim {name} " in text
    docstring = inspect.getdoc(COMMANDS[name]) or ""
    for parameter in inspect.signature(COMMANDS[name]).parameters:
        explained = re.search(rf"^    {parameter}: (\w+)", docstring, re.M)
        assert explained is not None
        assert explained[1] in text


@every_command
def test_help_speaks_of_no_python_type(command: Command, name: str) -> None:
    text = command(name, "--help").stdout
    assert re.findall(r"\b(STR|INT|FLOAT|BOOL|PATH\.\.\.|ARGS|Python types?)\b", text) == []


def test_grid_is_an_argument_or_an_option(command: Command) -> None:
    for arguments in (["none.yaml"], ["--grid", "none.yaml"]):
        assert "none.yaml: cannot be read" in command("bench", *arguments).stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["account"], "--epsilon: neither --epsilon nor --sigma is given; give one"),
        (["bench", "g.yaml", "--set", "epsilon=[-3]"], "--set epsilon[0]: "),
        (
            [
                "check",
                "dp-gaussian",
                "--param",
                "rankk=3",
            ],
            "fedsim: --param rankk: unknown key 'rankk'; did you mean",
        ),
        (["synth", "run", "--out", "x.csv"], "run: there are no results here"),
        (["bench", "out/g.yaml"], "fedsim: out/g.yaml: cannot be read"),
        (["bench", "set.yaml"], "fedsim: set.yaml: cannot be read"),
        (["report", "table-1"], "fedsim: table-1: there are no results here"),
        (["bench"], "bench: a value is missing for --grid; see fedsim bench --help"),
        (
            [
                "bench",
                "g.yaml",
                "--grid",
                "h.yaml",
            ],
            "'g.yaml' is one argument too many",
        ),
        (
            [
                "bench",
                "g.yaml",
                "--dry-run",
                "true",
            ],
            "takes no value; see fedsim bench --help",
        ),
        (["bench", "g.yaml", "--dry-rnu"], "Did you mean --dry-run?"),
        (["bench", ""], "the path is empty; give a path, or leave the option out"),
        (["check", "dp-gaussian", "--run", ""], "--run: the path is empty; give a path"),
        (["bench", "g.yaml", "--max-parallel", "0"], "--max-parallel: must be at least 1, got 0"),
        (["banch", "g.yaml"], "there is no command 'banch'; did you mean 'bench'?"),
        (["account", "--epsilon", "x"], "account: --epsilon: 'x' is not a number; see"),
    ],
)
def test_mistake_is_one_line_with_exit_code_2(
    folder: Path, command: Command, arguments: list[str], words: str
) -> None:
    (folder / "g.yaml").write_text("algorithms: [dp-gaussian]\n")
    assert_refused(command(*arguments), words)
    assert [path.name for path in folder.iterdir()] == ["g.yaml"]


def test_report_imports_nothing_of_the_working_folder(folder: Path, command: Command) -> None:
    command("report", "run")
    assert str(folder) not in sys.path


def test_interruption_has_one_line_and_exit_code_130(tmp_path: Path) -> None:
    (tmp_path / "stop.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    script = (
        "import sys; sys.argv = ['fedsim', 'algorithms', 'stop.py:Any']; from fedsim.cli "
        "import main; main()"
    )
    command = [sys.executable, "-c", script]
    done = run_process(command, tmp_path, preexec_fn=interruptible)
    assert done.returncode == 130
    assert done.stdout == "interrupted; run the same command again\n"
    assert done.stderr == ""


def test_version_is_what_a_paper_cites(command: Command) -> None:
    pattern = r"fedsim (\S+)(, revision [0-9a-f]{12}(-dirty)?)?\n"
    found = re.fullmatch(pattern, command("--version").stdout)
    assert found is not None
    assert found[1] == __version__


HELP = """
import sys
sys.argv = ["fedsim", "--help"]
from fedsim.cli import main
try:
    main()
except SystemExit:
    print({"torch", "ray", "pandas", "matplotlib", "transformers", "medmnist"} & {*sys.modules})
"""


def test_help_loads_no_large_package(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HELP]
    done = run_process(command, tmp_path)
    assert done.stdout.endswith("set()\n")


def test_closed_pipe_ends_a_command_without_a_traceback(tmp_path: Path) -> None:
    assert not run_process(["bash", "-c", f"{FEDSIM} new mine | true"], tmp_path).stderr
