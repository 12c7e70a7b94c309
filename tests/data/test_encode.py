"""Images to embeddings: equal to a plain loop, computed once, resumed, and refused in time."""

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import picture, save_encoder, save_folder
from rich.console import Console

from fedsim.data.arrays import UNIT_NORM, check_target, read_arrays, write_npz
from fedsim.data.embeddings import unit_norm
from fedsim.data.encode import EmbedJob, cached_embeddings, embed
from fedsim.data.encoder import ImageEncoder, locate, views_of
from fedsim.data.images import ImageSet, decoded
from fedsim.data.sources.load import image_set, load
from fedsim.data.spec import DatasetSpec
from fedsim.errors import UserError

CONSOLE = Console(file=io.StringIO())


class CountingImages:
    """Images that count how often each is read."""

    def __init__(self, images):
        self.images = images
        self.read = Counter()

    def __getattr__(self, name):
        return getattr(self.images, name)

    def source(self, row):
        self.read[row] += 1
        return self.images.source(row)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("fedsim.data.encode.SHARD", 7)


def read_folder(root):
    return image_set(DatasetSpec(imagefolder=root))


def with_sites(images):
    return replace(images, columns={"site": np.array(["n", "s"] * 12)})


@pytest.fixture
def pets(tmp_path) -> ImageSet:
    """24 images of a folder ``pets``, with a column ``site``."""
    images = read_folder(save_folder(tmp_path / "pets"))
    return with_sites(replace(images, images=CountingImages(images.images)))


def job(images, spec, **keys):
    return EmbedJob(images, locate(spec.model_copy(update=keys)), batch=3)


def embedded(images, spec, **keys):
    return embed(job(images, spec, **keys), CONSOLE)


def embedded_in_a_loop(images, spec):
    encoder = ImageEncoder(locate(spec), "cpu")
    pictures = [decoded(images.source(row)) for row in range(len(images))]
    return encoder.embed(encoder.pixels(pictures)).numpy()


def test_embeddings_equal_those_of_a_plain_loop(pets, encoder):
    x = embedded(pets, encoder).x
    np.testing.assert_allclose(x, embedded_in_a_loop(pets, encoder), atol=1e-5)


def test_every_image_is_read_once(pets, encoder):
    embedded(pets, encoder)
    embedded(pets, encoder)
    assert pets.images.read == Counter(range(24))


def test_a_saved_file_holds_scaled_rows_labels_split_and_columns(
    tmp_path,
    pets,
    encoder,
):
    result = embedded(pets, encoder)
    result.save(tmp_path / "out/pets.npz")
    arrays = np.load(tmp_path / "out/pets.npz")
    np.testing.assert_array_equal(arrays["x"], unit_norm(result.x))
    np.testing.assert_array_equal(arrays["y"], pets.y)
    np.testing.assert_array_equal(arrays["split"], pets.split)
    np.testing.assert_array_equal(arrays["site"], pets.columns["site"])
    np.testing.assert_array_equal(arrays["class_names"], pets.class_names)


def test_the_manifest_of_a_saved_file_names_data_and_encoder(
    tmp_path,
    pets,
    encoder,
):
    embedded(pets, encoder).save(tmp_path / "pets.npz")
    manifest = json.loads((tmp_path / "pets.json").read_text())
    assert manifest["dataset"] == "pets"
    assert manifest["encoder"] == locate(encoder).digest
    assert manifest["shape"] == [24, 16]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_saved_file_gives_the_same_bits_as_the_images(
    tmp_path,
    pets,
    encoder,
    dtype,
):
    embedded(pets, encoder, dtype=dtype).save(tmp_path / "pets.npz")
    spec = encoder.model_copy(update={"dtype": dtype})
    from_images = cached_embeddings(pets, spec, "pets", skip_bad=False)
    from_file = load(DatasetSpec(npz=tmp_path / "pets.npz"))
    np.testing.assert_array_equal(
        from_file.x_train,
        unit_norm(from_images.x_train),
    )
    np.testing.assert_array_equal(
        from_file.x_test,
        unit_norm(from_images.x_test),
    )


def test_a_file_in_the_encoders_scale_is_the_same_data(tmp_path, pets, encoder):
    result = embedded(pets, encoder)
    result.save(tmp_path / "new.npz")
    arrays = read_arrays(tmp_path / "new.npz")
    write_npz(tmp_path / "old.npz", arrays | {"x": result.x}, result.manifest)
    new = load(DatasetSpec(npz=tmp_path / "new.npz"))
    old = load(DatasetSpec(npz=tmp_path / "old.npz"))
    assert new.fingerprint == old.fingerprint


def test_rows_that_contradict_their_manifest_are_scaled(
    tmp_path,
    pets,
    encoder,
):
    arrays = {"x": embedded(pets, encoder).x, "y": pets.y, "split": pets.split}
    path = tmp_path / "pets.npz"
    write_npz(path, arrays, {"scale": UNIT_NORM})
    norms = np.linalg.norm(load(DatasetSpec(npz=path)).x_train, axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-6)


def test_the_first_view_is_the_image_and_the_others_are_fixed_crops(pets):
    image = decoded(pets.source(0))
    views = [view.tobytes() for view in views_of(image, 4)]
    again = [view.tobytes() for view in views_of(image, 4)]
    assert views[0] == image.tobytes()
    assert len(set(views)) == 4
    assert views == again


def test_an_embedding_of_several_views_is_their_mean(pets, encoder):
    network = ImageEncoder(locate(encoder), "cpu")
    total = 0
    for view in range(4):
        crops = [list(views_of(decoded(pets.source(row)), 4))[view] for row in range(24)]
        total += network.embed(network.pixels(crops)).numpy()
    np.testing.assert_allclose(
        embedded(pets, encoder, views=4).x,
        total / 4,
        atol=1e-5,
    )


def test_every_difference_has_its_own_file_in_the_cache(
    tmp_path,
    pets,
    encoder,
):
    other_encoder = save_encoder(tmp_path / "other", seed=1)
    jobs = [
        job(pets, encoder),
        job(pets, encoder, pool="mean"),
        job(pets, encoder, dtype="float16"),
        job(pets, encoder, views=2),
        job(pets, other_encoder),
        job(pets.take(np.arange(24) != 3), encoder),
    ]
    assert len({each.path for each in jobs}) == len(jobs)


def test_a_changed_image_is_computed_again(tmp_path, pets, encoder):
    before = job(pets, encoder).path
    picture(999).save(tmp_path / "pets/cat/3.png")
    assert job(with_sites(read_folder(tmp_path / "pets")), encoder).path != before


@pytest.fixture
def damaged(tmp_path):
    """36 images, 7 of them cut off; with batches of 3, one batch has no other image."""
    root = save_folder(tmp_path / "pets", each=12)
    for name in ("cat/0", "cat/1", "cat/10", "cat/11", "cat/2", "eel/5", "eel/6"):
        path = root / f"{name}.png"
        path.write_bytes(path.read_bytes()[:60])
    return read_folder(root)


def test_damaged_images_are_left_out_with_skip_bad(damaged, encoder):
    result = embed(job(damaged, encoder), CONSOLE, skip_bad=True)
    assert result.x.shape == (29, 16)
    assert result.x.any(axis=1).all()
    assert len(result.images.y) == 29
    assert len(result.manifest["skipped"]) == 7
    assert result.manifest["skipped"][0]["image"] == "cat/0.png"


def test_damaged_images_are_refused_by_default(damaged, encoder):
    embed(job(damaged, encoder), CONSOLE, skip_bad=True)
    message = (
        r"7 of 36 images cannot be decoded; .*skip_bad.*remove .*/embeddings/\w+\.\* "
        r"(?s:.*)cat/0.png(?s:.*)eel/6.png"
    )
    with pytest.raises(UserError, match=message):
        embedded(damaged, encoder)


def test_images_that_are_all_damaged_must_be_repaired(damaged, encoder):
    for path in damaged.images.paths:
        Path(path).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"36 of 36 images .*repair them; if"):
        embed(job(damaged, encoder), CONSOLE, skip_bad=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("b.npy", "is not an .npz file; give .*/b.npz"),
        ("mine.npz", "already exists and was not made by fedsim"),
    ],
)
def test_a_wrong_target_is_refused_before_the_work(tmp_path, name, message):
    np.savez(tmp_path / "mine.npz", x=np.eye(2))
    with pytest.raises(UserError, match=message):
        check_target(tmp_path / name)


@pytest.fixture
def interrupted(pets, encoder, monkeypatch):
    """The images after a run that was stopped at the third shard."""
    read = CountingImages.source

    def read_or_stop(images, row):
        if row == 14:
            raise KeyboardInterrupt
        return read(images, row)

    with monkeypatch.context() as patch:
        patch.setattr(CountingImages, "source", read_or_stop)
        with pytest.raises(KeyboardInterrupt):
            embedded(pets, encoder)
    pets.images.read.clear()
    return pets


def test_an_interrupted_run_continues_with_the_next_shard(
    interrupted,
    encoder,
    cache,
):
    x = embedded(interrupted, encoder).x
    assert set(interrupted.images.read) == set(range(14, 24))
    np.testing.assert_allclose(
        x,
        embedded_in_a_loop(interrupted, encoder),
        atol=1e-5,
    )
    assert [path.suffix for path in (cache / "embeddings").iterdir()] == [".npz"]


def test_a_broken_shard_is_computed_again(interrupted, encoder, cache):
    first_shard = next(cache.glob("embeddings/*.parts/000000.npz"))
    first_shard.write_bytes(b"PK half a file")
    x = embedded(interrupted, encoder).x
    assert set(interrupted.images.read) == {*range(7), *range(14, 24)}
    np.testing.assert_allclose(
        x,
        embedded_in_a_loop(interrupted, encoder),
        atol=1e-5,
    )
