import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benches import PATIENCE, interruptible
from pictures import save_encoder, save_folder, save_medmnist


@pytest.fixture
def fedsim(tmp_path, monkeypatch, command):
    """Runs the command's entry point in a folder with pictures and an encoder, offline, with a cache of its own."""
    save_encoder(tmp_path / "dino")
    save_folder(tmp_path / "pets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return command


def test_images_to_embeddings_to_a_grid_that_reads_them(tmp_path, fedsim):
    done = fedsim(
        "embed", "--dataset", "imagefolder:pets", "--encoder", "dino", "--out", "pets.npz", "--pool", "mean", "--dtype", "float16"
    )
    assert done.returncode == 0, done.stderr
    assert "24 embeddings of 16 dimensions" in done.stdout
    with np.load(tmp_path / "pets.npz") as held:
        assert (held["x"].shape, held["x"].dtype) == ((24, 16), np.float16)
    assert json.loads((tmp_path / "pets.json").read_text())["pool"] == "mean"
    (tmp_path / "g.yaml").write_text("algorithms: [fedhypevae]\ndataset: {npz: pets.npz}\nclients: 2\n")
    shown = fedsim("partition", "--grid", "g.yaml", "--show", "--out", "pictures")
    assert shown.returncode == 0, shown.stderr
    assert "eel" in shown.stdout


MISTAKES = {
    "an unknown data set": (("--dataset", "petz"), "--dataset: unknown data set 'petz'"),
    "a folder that is not there": (("--dataset", "imagefolder:petz"), "petz: there is no such folder"),
    "an encoder that cannot be had": (("--encoder", "facebook/dinov2-base"), "hf download facebook/dinov2-base --revision f9e44c81"),
    "an unknown pool": (("--pool", "max"), "--encoder: pool: unknown value 'max'"),
    "a file that is no npz": (("--out", "pets.csv"), "--out pets.csv: is not an .npz file; give pets.npz"),
    "data that are embeddings": (("--dataset", "npz:pets.npz"), "holds embeddings, not images"),
    "no YAML": (("--dataset", "{imagefolder: pets"), "--dataset: is not valid YAML"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2_and_nothing_is_written(tmp_path, fedsim, mistake):
    (wrong, value), message = MISTAKES[mistake]
    options = {"--dataset": "imagefolder:pets", "--encoder": "dino", "--out": "pets.npz", wrong: value}
    done = fedsim("embed", *(word for pair in options.items() for word in pair))
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dino", "pets"]


def test_truncated_images_are_listed_and_left_out_only_when_that_is_asked_for(tmp_path, fedsim):
    (tmp_path / "pets/cat/1.png").write_bytes(b"\x89PNG")
    command = ("embed", "--dataset", "imagefolder:pets", "--encoder", "dino", "--out", "pets.npz")
    refused = fedsim(*command)
    assert refused.returncode == 2
    assert "1 of 24 images cannot be decoded; repair them" in refused.stderr
    assert refused.stderr.endswith(":\n  cat/1.png (no image of a kind that Pillow knows)\n")
    assert not (tmp_path / "pets.npz").exists()
    done = fedsim(*command, "--skip-bad")
    assert done.returncode == 0, done.stderr
    assert "23 embeddings of 16 dimensions, 1 bad images left out" in done.stdout


INTERRUPTED = """
import os, signal
from fedsim.cli import main
from fedsim.data.encode import Shard

save = Shard.save

def save_and_interrupt(shard, path):
    save(shard, path)
    os.kill(os.getpid(), signal.SIGINT)

Shard.save = save_and_interrupt
main()
"""


@pytest.mark.slow
def test_an_interrupted_embed_goes_on_where_it_stopped(tmp_path):
    save_encoder(tmp_path / "dino")
    save_medmnist(tmp_path / "organamnist.npz", train=1_000, test=100)
    environment = {**os.environ, "FEDSIM_CACHE": str(tmp_path / "cache")}

    def embed(*fedsim):
        command = [*fedsim, "embed", "--dataset", "medmnist:organamnist", "--root", ".", "--encoder", "dino", "--out", "o.npz"]
        given = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": PATIENCE}
        return subprocess.run(command, **given, preexec_fn=interruptible, check=False)

    interrupted = embed(sys.executable, "-c", INTERRUPTED)
    assert (interrupted.returncode, interrupted.stderr) == (130, "")
    assert "interrupted; the same command goes on" in interrupted.stdout
    assert not (tmp_path / "o.npz").exists()
    assert len(list((tmp_path / "cache/embeddings").glob("*.shards/*.npz"))) == 1
    assert embed(Path(sys.executable).with_name("fedsim")).returncode == 0
    with np.load(tmp_path / "o.npz") as held:
        assert held["x"].shape == (1_112, 16)
