import fcntl
import io
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benches import no_file_above
from pictures import save_encoder, save_folder
from rich.console import Console

import fedsim.data.encoding.shards
from fedsim.data.arrays import check_target, write_sidecar
from fedsim.data.encoding.embed import EmbedJob, cached_embeddings, embed, in_process, outlook
from fedsim.data.encoding.encoder import has_bfloat16, locate
from fedsim.data.encoding.spec import EncoderSpec
from fedsim.data.encoding.views import views_of
from fedsim.data.images import ImageSet
from fedsim.data.sources.folder import load_image_folder
from fedsim.data.sources.npz import load_embedding_file
from fedsim.errors import UserError

CONSOLE = Console(file=io.StringIO())


class Counted:
    """Images that count how often each is decoded."""

    def __init__(self, images):
        self.images, self.decoded = images, Counter()

    def __getattr__(self, name):
        return getattr(self.images, name)

    def decoder(self, row):
        self.decoded[row] += 1
        return self.images.decoder(row)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    for module in ("fedsim.data.encoding.shards", "fedsim.data.encoding.embed"):
        monkeypatch.setattr(f"{module}.SHARD", 7)


@pytest.fixture
def pets(tmp_path) -> ImageSet:
    images = load_image_folder(save_folder(tmp_path / "pets"), "pets")
    return replace(images, images=Counted(images.images), columns={"site": np.array(["n", "s"] * 12)})


def job(images, spec, **changes):
    return EmbedJob(images, locate(spec.model_copy(update=changes)), batch=3)


def stored(path):
    with np.load(path, allow_pickle=False) as held:
        return dict(held)


def bare(images, spec, **changes):
    """What a loop over the images gives."""
    made = locate(spec.model_copy(update=changes)).load("cpu")
    return made.embed(made.pixels([images.decoder(i)() for i in range(len(images))]))


def test_the_file_holds_what_a_bare_loop_over_the_images_gives(tmp_path, pets, encoder):
    made = embed(job(pets, encoder), CONSOLE)
    made.save(tmp_path / "out/pets.npz")
    held = stored(tmp_path / "out/pets.npz")
    np.testing.assert_allclose(held["x"], bare(pets, encoder), atol=1e-5)
    assert held["x"].dtype == np.float32
    for name, values in (("y", pets.y), ("split", pets.split), ("site", pets.columns["site"]), ("class_names", pets.class_names)):
        np.testing.assert_array_equal(held[name], values)
    assert json.loads((tmp_path / "out/pets.json").read_text())["dataset"] == "pets"
    data = cached_embeddings(pets, encoder, "pets", skip_bad=False)
    assert load_embedding_file(tmp_path / "out/pets.npz", "pets").fingerprint == data.fingerprint


def test_the_manifest_says_how_the_embeddings_came_to_be(pets, encoder):
    manifest = embed(job(pets, encoder, pool="cls+mean", dtype="float16"), CONSOLE).manifest
    assert manifest["data"] == pets.fingerprint
    assert manifest["encoder"] == locate(encoder).digest
    assert (manifest["pool"], manifest["dtype"], manifest["shape"]) == ("cls+mean", "float16", [24, 32])
    assert manifest["size"] == {"height": 28, "width": 28}
    assert len(manifest["normalisation"]["image_mean"]) == 3
    assert manifest["versions"].keys() >= {"fedsim", "torch", "transformers"}
    assert manifest["skipped"] == []
    assert manifest["revision"] is None


def test_a_view_is_a_fixed_flip_or_crop_and_an_embedding_the_mean_over_them(pets, encoder):
    made = locate(encoder).load("cpu")
    views = [list(views_of(pets.decoder(i)(), 4)) for i in range(24)]
    mean = np.mean([made.embed(made.pixels([of[k] for of in views])).numpy() for k in range(4)], axis=0)
    np.testing.assert_allclose(embed(job(pets, encoder, views=4), CONSOLE).x, mean, atol=1e-5)
    first = views[0][0]
    assert first == pets.decoder(0)()
    assert [view.tobytes() for view in views[0][:3]] == [view.tobytes() for view in views_of(first, 3)]
    assert len({view.tobytes() for view in views[0]}) == 4


def test_views_of_an_image_depend_on_it_alone(pets, encoder):
    whole, part = (embed(job(images, encoder, views=3), CONSOLE).x for images in (pets, pets.take(np.arange(24) % 2 == 1)))
    np.testing.assert_allclose(whole[1::2], part, atol=1e-5)


@pytest.mark.skipif(not has_bfloat16(), reason="the processor has no bfloat16")
def test_bfloat16_is_computed_in_and_float32_is_stored(pets, encoder):
    x = embed(job(pets, encoder, dtype="bfloat16"), CONSOLE).x
    exact = bare(pets, encoder).numpy()
    assert x.dtype == np.float32
    assert 0 < np.linalg.norm(x - exact) < 0.05 * np.linalg.norm(exact)


def test_other_labels_columns_and_splits_embed_nothing_again(pets, encoder):
    first = embed(job(pets, encoder), CONSOLE)
    pets.images.decoded.clear()
    again = replace(pets, y=pets.y[::-1].copy(), split=pets.split[::-1].copy(), columns={"age": np.arange(24)})
    second = embed(job(again, encoder), CONSOLE)
    np.testing.assert_array_equal(first.x, second.x)
    assert not pets.images.decoded
    assert second.data("pets").columns.keys() == {"age"}


def test_an_outlook_decodes_nothing_and_ends_when_all_is_embedded(pets, encoder):
    ahead = outlook(job(pets, encoder))
    assert (ahead.images, ahead.dim) == (24, 16)
    assert ahead.seconds > 0
    assert not pets.images.decoded
    embed(job(pets, encoder), CONSOLE)
    assert outlook(job(pets, encoder)) == (0, 0.0, 16)


def test_every_image_is_decoded_once_and_the_second_call_decodes_none(pets, encoder, cache):
    first = cached_embeddings(pets, encoder, "pets", skip_bad=False)
    second = cached_embeddings(pets, encoder, "pets", skip_bad=False)
    assert pets.images.decoded == Counter(range(24))
    assert first.fingerprint == second.fingerprint
    assert sorted(path.suffix for path in (cache / "embeddings").iterdir()) == [".lock", ".npz"]


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
    assert len({each.key for each in jobs}) == len(jobs)
    before = jobs[0].key
    (tmp_path / "pets/cat/3.png").write_bytes((tmp_path / "pets/dog/3.png").read_bytes())
    changed = load_image_folder(tmp_path / "pets", "pets")
    assert job(replace(changed, columns=pets.columns), encoder).key != before


@pytest.mark.parametrize("damage", ["manifest", "cut"])
def test_a_cached_file_that_is_not_what_its_name_says_is_replaced(pets, encoder, damage):
    embed(job(pets, encoder), CONSOLE)
    path = job(pets, encoder).path
    right = stored(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:300])
    else:
        manifest = json.loads(str(right["manifest"])) | {"images": "another"}
        np.savez(path, **(right | {"x": right["x"] + 1, "manifest": np.array(json.dumps(manifest))}))
    np.testing.assert_array_equal(embed(job(pets, encoder), CONSOLE).x, right["x"])


def test_an_interrupted_run_goes_on_with_the_next_shard(pets, encoder):
    def interrupted(job, numbers):
        for shard in in_process(job, numbers):
            yield shard
            if shard.number == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(job(pets, encoder), CONSOLE, work=interrupted)
    pets.images.decoded.clear()
    x = embed(job(pets, encoder), CONSOLE).x
    assert set(pets.images.decoded) == set(range(14, 24))
    np.testing.assert_allclose(x, bare(pets, encoder), atol=1e-5)


def test_a_broken_shard_is_computed_again(pets, encoder, cache):
    def after_one(job, numbers):
        yield next(in_process(job, numbers))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(job(pets, encoder), CONSOLE, work=after_one)
    (shard,) = (cache / "embeddings").glob("*.shards/*.npz")
    shard.write_bytes(b"PK half a file")
    assert embed(job(pets, encoder), CONSOLE).x.any(axis=1).all()


@pytest.fixture
def damaged(tmp_path) -> ImageSet:
    """Seven bad images, a whole batch among them."""
    root = save_folder(tmp_path / "pets", each=12)
    for name in ("cat/0", "cat/1", "cat/10", "cat/11", "cat/2", "eel/5", "eel/6"):
        path = root / f"{name}.png"
        path.write_bytes(path.read_bytes()[:60])
    return load_image_folder(root, "pets")


def test_bad_images_are_all_listed_and_nothing_is_written(damaged, encoder, cache):
    with pytest.raises(UserError) as caught:
        embed(job(damaged, encoder), CONSOLE)
    assert "7 of 36 images cannot be decoded" in caught.value.what
    for name in ("cat/0.png", "eel/6.png"):
        assert name in caught.value.hint
    assert "--skip-bad" in caught.value.hint
    assert list((cache / "embeddings").glob("*.npz")) == []


def test_bad_images_are_left_out_if_that_is_asked_for_and_only_then(damaged, encoder):
    made = embed(job(damaged, encoder), CONSOLE, skip_bad=True)
    assert made.x.shape == (29, 16)
    assert made.x.any(axis=1).all()
    assert len(made.images.y) == 29
    assert {bad["image"] for bad in made.manifest["skipped"]} >= {"cat/0.png", "eel/6.png"}
    with pytest.raises(UserError, match="7 of 36 images cannot be decoded"):
        embed(job(damaged, encoder), CONSOLE)


def test_a_column_with_a_reserved_name_is_refused(pets, encoder):
    with pytest.raises(UserError, match="has a column 'y', a name that embeddings use themselves"):
        embed(job(replace(pets, columns={"y": pets.y}), encoder), CONSOLE)


def test_memory_of_the_pipeline_does_not_grow_with_the_images(pets, encoder, monkeypatch):
    """Batches that wait are bounded: decoding never runs ahead of the model by more than threads + 1 batches."""
    made = locate(encoder).load("cpu")
    ahead = []
    embedded = made.embed
    monkeypatch.setattr(made, "embed", lambda pixels: ahead.append(sum(pets.images.decoded.values()) - 2 * len(ahead)) or embedded(pixels))
    list(fedsim.data.encoding.shards.embedded_shards(made, pets, range(4), batch=2, threads=2))
    assert max(ahead) <= 2 * (2 + 1)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("a/b.npy", "is not an .npz file; give a/b.npz"),
        ("", "is not an .npz file; give rows.npz"),
        ("/", "is not an .npz file; give rows.npz"),
        ("file/b.npz", "cannot"),
        ("folder.npz", "cannot"),
        ("mine.npz", "is there and was not made by fedsim; give another file, or remove it"),
        ("notes.npz", "notes.json, where its manifest goes, is there already; give another file, or remove that"),
    ],
)
def test_where_nothing_can_be_written_is_said_before_the_work(tmp_path, monkeypatch, out, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.npz").mkdir()
    np.savez(tmp_path / "mine.npz", x=np.eye(2))
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(UserError, match=message):
        check_target(Path(out))
    check_target(Path("new/folder/a.npz"))
    assert not (tmp_path / "new").exists()


def test_an_unknown_pool_or_dtype_is_refused():
    with pytest.raises(ValueError, match="cls"):
        EncoderSpec(name="x", pool="max")


def test_a_second_run_waits_for_the_first_and_finds_its_file(pets, encoder, cache):
    first = embed(job(pets, encoder), CONSOLE)
    pets.images.decoded.clear()
    console = Console(file=io.StringIO())
    with (cache / "embeddings" / f"{job(pets, encoder).key}.lock").open() as lock, ThreadPoolExecutor(1) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = pool.submit(embed, job(pets, encoder), console)
        while "waiting" not in console.file.getvalue():
            assert not second.done()
            os.sched_yield()
        fcntl.flock(lock, fcntl.LOCK_UN)
        np.testing.assert_array_equal(second.result().x, first.x)
    assert not pets.images.decoded


def test_a_manifest_that_cannot_be_written_leaves_the_old_one(tmp_path):
    write_sidecar(tmp_path / "rows.npz", {"rows": 1})
    with no_file_above(100), pytest.raises(OSError, match="File too large"):
        write_sidecar(tmp_path / "rows.npz", {"rows": "1" * 1000})
    assert [json.loads(path.read_text()) for path in tmp_path.iterdir()] == [{"rows": 1}]
