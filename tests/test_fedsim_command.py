import sys
from pathlib import Path

import pytest
from benches import Done, assert_refused, run_process

import fedsim_command

ROOT = Path(fedsim_command.__file__).parent


def command_beside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Done:
    """Run ``fedsim --version`` in a process that imports from ``folder`` first."""
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")
    script = (
        "import sys; sys.argv = ['fedsim', '--version']; from fedsim_command import main; main()"
    )
    done = run_process([sys.executable, "-c", script], folder.parent)
    return Done(done.returncode, done.stdout, done.stderr)


def install(folder: Path, version: str, entry_points: str) -> None:
    info = folder / f"fedsim-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fedsim\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entry_points)


def test_another_package_of_this_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(
        tmp_path,
        "0.9.0",
        "[console_scripts]\nfedsim-cli = fedsim_cli.fedsim_cli:cli\n",
    )
    (tmp_path / "fedsim").mkdir()
    (tmp_path / "fedsim" / "__init__.py").write_text("from . import datasets\n")
    done = command_beside(tmp_path, monkeypatch)
    assert_refused(done, f"fedsim: fedsim 0.9.0 in {tmp_path} is another simulator")
    assert "python -m pip uninstall -y fedsim fedsim-generative" in done.stderr
