"""Images to embeddings: equal to a bare loop, computed once, resumed, and refused in time."""

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import save_encoder, save_folder
from rich.console import Console

from fedsim.data.arrays import UNIT_NORM, check_target, read_arrays, write_npz
from fedsim.data.embeddings import unit_norm
from fedsim.data.encode import EmbedJob, cached_embeddings, embed
from fedsim.data.encoder import ImageEncoder, locate, views_of
from fedsim.data.images import ImageSet, decoded
from fedsim.data.sources.files import load_image_folder
from fedsim.data.sources.load import load
from fedsim.data.spec import DatasetSpec
from fedsim.errors import UserError

CONSOLE = Console(file=io.StringIO())


class Counted:
    """Images that count how often each is decoded."""

    def __init__(self, images):
        self.images = images
        self.decoded = Counter()

    def __getattr__(self, name):
        return getattr(self.images, name)

    def source(self, row):
        self.decoded[row] += 1
        return self.images.source(row)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("fedsim.data.encode.SHARD", 7)


@pytest.fixture
def pets(tmp_path) -> ImageSet:
    images = load_image_folder(save_folder(tmp_path / "pets"), "pets")
    return replace(
        images, images=Counted(images.images), columns={"site": np.array(["n", "s"] * 12)}
    )


def job(images, spec, **changes):
    return EmbedJob(images, locate(spec.model_copy(update=changes)), batch=3)


def bare(images, spec, **changes):
    """What a loop over the images gives."""
    made = ImageEncoder(locate(spec.model_copy(update=changes)), "cpu")
    return made.embed(made.pixels([decoded(images.source(i)) for i in range(len(images))]))


def test_the_file_holds_what_a_bare_loop_over_the_images_gives(tmp_path, pets, encoder):
    made = embed(job(pets, encoder), CONSOLE)
    made.save(tmp_path / "out/pets.npz")
    held = np.load(tmp_path / "out/pets.npz")
    np.testing.assert_allclose(held["x"], unit_norm(bare(pets, encoder).numpy()), atol=1e-5)
    for name, values in (
        ("y", pets.y),
        ("split", pets.split),
        ("site", pets.columns["site"]),
        ("class_names", pets.class_names),
    ):
        np.testing.assert_array_equal(held[name], values)
    manifest = json.loads((tmp_path / "out/pets.json").read_text())
    assert (manifest["dataset"], manifest["encoder"], manifest["shape"]) == (
        "pets",
        locate(encoder).digest,
        [24, 16],
    )
    assert pets.images.decoded == Counter(range(24)) + Counter(range(24)), "by the loop, and once"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_grid_reads_the_file_as_the_images_to_the_last_bit(tmp_path, pets, encoder, dtype):
    made = embed(job(pets, encoder, dtype=dtype), CONSOLE)
    made.save(tmp_path / "pets.npz")
    spec = encoder.model_copy(update={"dtype": dtype})
    images = cached_embeddings(pets, spec, "pets", skip_bad=False)
    of_file = load(DatasetSpec(npz=tmp_path / "pets.npz"))
    np.testing.assert_array_equal(of_file.x_train, unit_norm(images.x_train))
    np.testing.assert_array_equal(of_file.x_test, unit_norm(images.x_test))


def test_a_file_written_with_the_encoders_scale_is_the_same_data(tmp_path, pets, encoder):
    made = embed(job(pets, encoder), CONSOLE)
    made.save(tmp_path / "new.npz")
    arrays = read_arrays(tmp_path / "new.npz")
    write_npz(tmp_path / "old.npz", {**arrays, "x": made.x}, made.manifest)
    new, old = (load(DatasetSpec(npz=tmp_path / f"{age}.npz")) for age in ("new", "old"))
    assert new.fingerprint == old.fingerprint


def test_rows_that_belie_their_manifest_are_scaled(tmp_path, pets, encoder):
    made = embed(job(pets, encoder), CONSOLE)
    arrays = {"x": made.x, "y": pets.y, "split": pets.split}
    write_npz(tmp_path / "pets.npz", arrays, {**made.manifest, "scale": UNIT_NORM})
    norms = np.linalg.norm(load(DatasetSpec(npz=tmp_path / "pets.npz")).x_train, axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-6)


def test_a_view_is_a_fixed_flip_or_crop_and_an_embedding_the_mean_over_them(pets, encoder):
    made = ImageEncoder(locate(encoder), "cpu")
    views = [list(views_of(decoded(pets.source(i)), 4)) for i in range(24)]
    mean = np.mean(
        [made.embed(made.pixels([of[k] for of in views])).numpy() for k in range(4)], axis=0
    )
    np.testing.assert_allclose(embed(job(pets, encoder, views=4), CONSOLE).x, mean, atol=1e-5)
    assert views[0][0] == decoded(pets.source(0))
    assert len({view.tobytes() for view in views[0]}) == 4


def test_whatever_differs_is_computed_again_never_reused(tmp_path, pets, encoder):
    other = save_encoder(tmp_path / "other", seed=1)
    jobs = [
        job(pets, encoder),
        job(pets, encoder, pool="mean"),
        job(pets, encoder, dtype="float16"),
        job(pets, encoder, views=2),
        job(pets, other),
        job(pets.take(np.arange(24) != 3), encoder),
    ]
    assert len({each.path for each in jobs}) == len(jobs)
    before = jobs[0].path
    (tmp_path / "pets/cat/3.png").write_bytes((tmp_path / "pets/dog/3.png").read_bytes())
    changed = load_image_folder(tmp_path / "pets", "pets")
    assert job(replace(changed, columns=pets.columns), encoder).path != before


def test_bad_images_are_left_out_if_that_is_asked_for_and_only_then(tmp_path, encoder):
    root = save_folder(tmp_path / "pets", each=12)
    for name in (
        "cat/0",
        "cat/1",
        "cat/10",
        "cat/11",
        "cat/2",
        "eel/5",
        "eel/6",
    ):  # a whole batch among them
        path = root / f"{name}.png"
        path.write_bytes(path.read_bytes()[:60])
    damaged = load_image_folder(root, "pets")
    made = embed(job(damaged, encoder), CONSOLE, skip_bad=True)
    assert made.x.shape == (29, 16)
    assert made.x.any(axis=1).all()
    assert len(made.images.y) == 29
    assert {bad["image"] for bad in made.manifest["skipped"]} >= {"cat/0.png", "eel/6.png"}
    with pytest.raises(
        UserError,
        match=r"7 of 36 images cannot be decoded; .*skip_bad(?s:.*)cat/0.png(?s:.*)eel/6.png",
    ):
        embed(job(damaged, encoder), CONSOLE)


def test_where_nothing_can_be_written_is_said_before_the_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "mine.npz", x=np.eye(2))
    for out, message in (
        ("a/b.npy", "is not an .npz file; give a/b.npz"),
        ("mine.npz", "is there and was not made by fedsim"),
    ):
        with pytest.raises(UserError, match=message):
            check_target(Path(out))


def test_an_interrupted_run_goes_on_with_the_next_shard_and_a_broken_one_is_computed_again(
    pets, encoder, cache, monkeypatch
):
    source = Counted.source

    def interrupted(images, row):
        if row == 14:
            raise KeyboardInterrupt
        return source(images, row)

    monkeypatch.setattr(Counted, "source", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed(job(pets, encoder), CONSOLE)
    monkeypatch.setattr(Counted, "source", source)
    broken = next((cache / "embeddings").glob("*.parts/000000.npz"))
    broken.write_bytes(b"PK half a file")
    pets.images.decoded.clear()
    x = embed(job(pets, encoder), CONSOLE).x
    assert set(pets.images.decoded) == {*range(7), *range(14, 24)}
    np.testing.assert_allclose(x, bare(pets, encoder), atol=1e-5)
    assert [path.suffix for path in (cache / "embeddings").iterdir()] == [".npz"]
