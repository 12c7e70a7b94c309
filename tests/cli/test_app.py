import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from benches import PATIENCE, Done, interruptible

from fedsim import __version__

Fedsim = Callable[..., Done]


@pytest.mark.parametrize("arguments", [["bench", "--dry-run", "--grid"], ["report"], ["synth", "--out", "s.npz"]])
def test_a_path_of_any_length_is_a_mistake_of_one_short_line(fedsim: Fedsim, arguments: list[str]) -> None:
    done = fedsim(*arguments, "a" * 200_000)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert len(done.stderr) < 1000


def test_a_terminal_without_columns_is_told_all_the_same(fedsim: Fedsim, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, told in ((["report", "none"], "there are no results here"), (["bench", "--nothing"], "No such option")):
        monkeypatch.setenv("COLUMNS", "0")
        assert told in fedsim(*arguments).stderr


def test_closed_streams_are_files_for_whoever_needs_them(fedsim: Fedsim, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert fedsim("report", "none").returncode == 2
    with sys.stdout, sys.stderr:
        assert min(sys.stdout.fileno(), sys.stderr.fileno()) >= 0


def test_an_interruption_has_one_word_whatever_the_command_does(tmp_path: Path) -> None:
    (tmp_path / "stop.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    script = "import sys; sys.argv = ['fedsim', 'algorithms', 'stop.py:Any']; from fedsim.cli import main; main()"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, preexec_fn=interruptible)
    assert (done.returncode, done.stdout, done.stderr) == (130, "interrupted\n", "")


def test_version_tells_what_a_paper_cites(fedsim: Fedsim) -> None:
    done = fedsim("--version")
    assert done.returncode == 0
    told = re.fullmatch(r"fedsim (\S+)(, revision [0-9a-f]{12}(-dirty)?)?\n", done.stdout)
    assert told is not None
    assert told[1] == __version__


@pytest.mark.parametrize("arguments", [["--help"], ["bench", "--help"], ["bench", "--grid", "none.yaml"]])
def test_transformers_and_medmnist_are_imported_only_where_they_are_needed(tmp_path: Path, arguments: list[str]) -> None:
    script = (
        f"import sys; sys.argv = {['fedsim', *arguments]!r}\nfrom fedsim.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
    )
    check = "print([name for name in ('transformers', 'medmnist', 'torchvision', 'datasets') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script + check], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.strip().splitlines()[-1] == "[]"
