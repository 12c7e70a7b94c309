"""``fedsim check``, ``fedsim audit``, ``fedsim embed``: tables, exit codes, mistakes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from benches import Done
from pictures import save_encoder, save_folder

import fedsim

BROKEN = Path(__file__).parents[1] / "broken"
Command = Callable[..., Done]


def test_a_file_that_fails_is_told_with_reason_and_fix_in_100_columns(command: Command) -> None:
    done = command("check", f"{BROKEN}/clips.py:UnclippedPart", "--trust", "silo", "--quick")
    assert done.returncode == 1
    line, _, table = done.stdout.partition("\n")
    assert line.endswith("clips.py:UnclippedPart: 11 of 12 checks passed (example, silo)")
    assert max(map(len, table.splitlines())) <= 100
    assert "prototypes.bias" in table
    assert "fix: clip every unit" in table


def test_a_check_that_passes_is_one_line_and_a_verbose_one_is_all_that_was_seen(command: Command) -> None:
    arguments = ("check", "dp-gaussian", "--unit", "example", "--trust", "aggregate", "--quick")
    done, line = command(*arguments), "fedsim check dp-gaussian: 12 of 12 checks passed (example, aggregate)\n"
    assert (done.returncode, done.stdout) == (0, line)
    told = command(*arguments, "--verbose").stdout
    assert told.startswith(line)
    assert "pairs of neighbours" in " ".join(told.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.py:Method"], "there is no file"),
        ([f"{BROKEN}/refused.py:CannotBePlanned"], ": ZeroDivisionError: division by zero"),
    ],
)
def test_a_mistake_of_a_check_is_one_line_and_exit_code_2(command: Command, arguments: list[str], words: str) -> None:
    done = command("check", *arguments)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert words in done.stderr


def test_an_audit_says_whether_it_refutes(folder: Path, command: Command) -> None:
    found = fedsim.audit("dp-gaussian", pairs=20, out=folder / "audit")
    assert found.refuted is False
    assert "dp-gaussian, example, aggregate: not refuted" in repr(found)
    assert command("audit", "runs/nosuch").stderr.startswith("fedsim: runs/nosuch: there is no such run folder; give one")


@pytest.fixture
def pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures and an encoder, offline, with a cache of its own."""
    save_encoder(folder / "dino")
    save_folder(folder / "pets")
    monkeypatch.setenv("FEDSIM_CACHE", str(folder / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


def test_images_become_embeddings_that_a_grid_reads(pictures: Path, command: Command) -> None:
    options = ("--pool", "mean", "--dtype", "float16")
    done = command("embed", "--dataset", "imagefolder:pets", "--encoder", "dino", "--out", "pets.npz", *options)
    assert done.returncode == 0, done.stderr
    assert "24 embeddings of 16 dimensions" in done.stdout
    with np.load(pictures / "pets.npz") as held:
        assert (held["x"].shape, held["x"].dtype) == ((24, 16), np.float16)
    assert json.loads((pictures / "pets.json").read_text())["pool"] == "mean"
    plan = fedsim.bench({"algorithms": ["dp-gaussian"], "dataset": {"npz": "pets.npz"}, "clients": 2}, dry_run=True)
    assert "eel" in plan.partitions.columns  # type: ignore[union-attr]


MISTAKES = {
    "an unknown data set": (("--dataset", "petz"), "dataset: unknown data set 'petz'"),
    "a folder that is not there": (("--dataset", "imagefolder:petz"), "petz: there is no such folder"),
    "an encoder that cannot be had": (("--encoder", "facebook/dinov2-base"), "hf download facebook/dinov2-base --revision f9e44c81"),
    "an unknown pool": (("--pool", "max"), "encoder: pool: 'max': Input should be 'cls'"),
    "a file that is no npz": (("--out", "pets.csv"), "out pets.csv: is not an .npz file; give pets.npz"),
    "no YAML": (("--dataset", "{imagefolder: pets"), "dataset: is not valid YAML"),
    "no batch": (("--batch", "0"), "--batch: must be at least 1, got 0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_an_embedding_is_one_line_and_nothing_is_written(pictures: Path, command: Command, mistake: str) -> None:
    (wrong, value), message = MISTAKES[mistake]
    options = {"--dataset": "imagefolder:pets", "--encoder": "dino", "--out": "pets.npz", wrong: value}
    done = command("embed", *(word for pair in options.items() for word in pair))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert message in done.stderr
    assert sorted(path.name for path in pictures.iterdir()) == ["dino", "pets"]


def test_truncated_images_are_listed_and_left_out_only_when_that_is_asked_for(pictures: Path, command: Command) -> None:
    (pictures / "pets/cat/1.png").write_bytes(b"\x89PNG")
    embed = ("embed", "--dataset", "imagefolder:pets", "--encoder", "dino", "--out", "pets.npz")
    refused = command(*embed)
    assert refused.returncode == 2
    assert "1 of 24 images cannot be decoded; repair them, or leave them out with --skip-bad" in refused.stderr
    done = command(*embed, "--skip-bad")
    assert "23 embeddings of 16 dimensions, 1 bad images left out" in done.stdout
