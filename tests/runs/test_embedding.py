import io
import os
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cells import NODES, quick
from pictures import save_encoder, save_folder, save_medmnist
from rich.console import Console

from fedsim.data.encoding.embed import EmbedJob, embed
from fedsim.data.encoding.encoder import locate
from fedsim.data.images import ImageFiles
from fedsim.data.sources.folder import load_image_folder
from fedsim.errors import RunLost, UserError
from fedsim.grid.models import Grid
from fedsim.report.plan_table import show_plan
from fedsim.runs import embedding
from fedsim.runs.embedding import EmbedActor, gpu_share, on_actors
from fedsim.runs.need import Node, Share, fit_together
from fedsim.runs.prepare import prepare

REPOSITORY = Path(__file__).parents[2]
OFFICIAL = next((f for f in (REPOSITORY / "shared/data", REPOSITORY.parent / "shared/data") if (f / "organamnist.npz").is_file()), None)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))


def test_several_actors_give_the_embeddings_of_one_process(tmp_path, monkeypatch, ray_cluster):
    spec = save_encoder(tmp_path / "encoder")
    images = load_image_folder(save_folder(tmp_path / "pets", each=250), "pets")
    job = EmbedJob(images, locate(spec))
    assert job.shards == 2
    alone = embed(job, Console(quiet=True)).x
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "second"))
    x = embed(job, Console(quiet=True), work=on_actors(2, Node(2.0, 0.0), nullcontext())).x
    np.testing.assert_allclose(x, alone, atol=1e-5)


class Dies(EmbedActor):
    def run(self, numbers):
        yield os._exit(1)


def test_an_actor_that_dies_is_no_mistake_of_who_gave_the_command(tmp_path, monkeypatch, ray_cluster):
    spec = save_encoder(tmp_path / "encoder")
    job = EmbedJob(load_image_folder(save_folder(tmp_path / "pets", each=2), "pets"), locate(spec))
    monkeypatch.setattr(embedding, "EmbedActor", Dies)
    with pytest.raises(RunLost, match=r"an actor died \(killed, or out of memory\); run the same command again"):
        embed(job, Console(quiet=True), work=on_actors(1, Node(1.0, 0.0), nullcontext()))


def test_more_actors_than_cpus_are_refused():
    with pytest.raises(UserError, match="3 actors need as many CPUs, and there are 2; give at most 2"):
        on_actors(3, Node(2.0, 0.0), nullcontext())


def test_all_actors_find_room_on_a_machine_s_gpus():
    for gpus, actors in product(range(5), range(1, 17)):
        node = Node(16.0, float(gpus))
        share = gpu_share(actors, node)
        assert (share > 0) == (gpus > 0)
        assert fit_together([Share(1.0, share)] * actors, [node])
    assert [gpu_share(actors, Node(16.0, 2.0)) for actors in (1, 2, 3, 4, 5)] == [1.0, 1.0, 0.5, 0.5, 0.3333]


def grid(tmp_path, **keys):
    base = {"encoder": save_encoder(tmp_path / "encoder").name, "clients": 3, "algorithms": [quick("fedhypevae"), quick("weight-noise")]}
    return Grid.model_validate({**base, "evaluation": {"per_class": 5}, **keys})


@pytest.fixture
def decoded(monkeypatch):
    """The images that are decoded, one after another."""
    rows = []
    original = ImageFiles.decoder
    monkeypatch.setattr(ImageFiles, "decoder", lambda images, row: rows.append(row) or original(images, row))
    return rows


def test_a_grid_of_24_cells_decodes_each_image_once(tmp_path, decoded):
    save_folder(tmp_path / "pets", each=12)
    axes = {"alpha": [0.5, 1.0], "epsilon": [1, 4], "seeds": [0, 1, 2]}
    prepared = prepare(grid(tmp_path, dataset={"imagefolder": tmp_path / "pets"}, **axes), NODES)
    assert len(prepared.trials) == 24
    assert sorted(decoded) == list(range(36))
    prepare(grid(tmp_path, dataset={"imagefolder": tmp_path / "pets"}, **axes), NODES)
    assert len(decoded) == 36


def table(folder, **columns):
    """A CSV file of 24 images of three classes."""
    save_folder(folder)
    paths = [f"{kind}/{n}.png" for kind in ("cat", "dog", "eel") for n in range(8)]
    facts = {"path": paths, "label": [path[:3] for path in paths], **columns}
    pd.DataFrame(facts).to_csv(folder / "pets.csv", index=False)
    return {"csv": folder / "pets.csv"}


PATIENTS = [f"p{n}" for n in range(12)] * 2


@pytest.mark.parametrize(
    ("columns", "asked", "message"),
    [
        ({"site": ["n", "s"] * 12}, {"partition": {"scheme": "column", "column": "sites"}}, "partition.column: .* no column 'sites'"),
        ({"patient": PATIENTS}, {"unit": {"column": "patients"}}, "unit: the data set has no column 'patients'"),
        (
            {"patient": PATIENTS, "split": ["train"] * 12 + ["test"] * 4 + ["train"] * 8},
            {"unit": {"column": "patient"}, "clients": 2},
            "unit: 4 values of patient have both training and test rows, such as 'p0'",
        ),
        ({}, {"clients": 30}, r"clients\[0\]: 30 clients"),
    ],
)
def test_what_columns_and_labels_refuse_is_refused_before_an_image_is_decoded(tmp_path, decoded, columns, asked, message):
    with pytest.raises(UserError, match=message):
        prepare(grid(tmp_path, dataset=table(tmp_path / "pets", **columns), **asked), NODES)
    assert decoded == []


def test_another_column_decodes_nothing_again(tmp_path, decoded):
    prepare(grid(tmp_path, dataset=table(tmp_path / "pets")), NODES)
    assert len(decoded) == 24
    held = pd.read_csv(tmp_path / "pets/pets.csv")
    held.assign(patient=PATIENTS).to_csv(tmp_path / "pets/pets.csv", index=False)
    of_patients = {"csv": tmp_path / "pets/pets.csv", "split": {"by": "patient"}}
    prepared = prepare(grid(tmp_path, dataset=of_patients, unit={"column": "patient"}, clients=2), NODES)
    assert len(decoded) == 24
    (data,) = prepared.data.values()
    assert not set(data.columns["patient"]) & set(data.test_columns["patient"])


def test_without_embedding_a_grid_says_what_it_would_embed(tmp_path, decoded):
    pets = {"imagefolder": save_folder(tmp_path / "pets")}
    ahead = prepare(grid(tmp_path, dataset=pets), NODES, embed=False)
    assert decoded == []
    (left,) = ahead.to_embed
    assert left.startswith("24 images of pets with encoder, about ")
    console = Console(file=io.StringIO(), width=400)
    show_plan(ahead, console)
    assert f"to be embedded first: {left}" in console.file.getvalue()
    whole = prepare(grid(tmp_path, dataset=pets), NODES)
    assert [trial.plan for trial in ahead.trials] == [trial.plan for trial in whole.trials]
    assert [trial.partition.fingerprint for trial in ahead.trials] == [trial.partition.fingerprint for trial in whole.trials]
    assert prepare(grid(tmp_path, dataset=pets), NODES, embed=False).to_embed == ()


def test_encoders_are_an_axis_beside_data_sets_that_need_none(tmp_path, bench):
    pets = {"imagefolder": save_folder(tmp_path / "pets"), "overlap": "keep"}
    encoders = [save_encoder(tmp_path / "dino").name, {"name": save_encoder(tmp_path / "base", seed=1).name, "views": 2}]
    keys = {"dataset": [pets, "digits"], "encoder": encoders, "algorithms": [quick("dp-gaussian")], "evaluation": {"per_class": 5}}
    ran = bench(Grid.model_validate({"clients": 2, "resources": {"clients_per_actor": "all"}, **keys}))
    assert ran.code == 0, ran.output
    names = [f"{name} ({encoder})" for name in ("pets", "digits") for encoder in ("dino", "base, 2 views")]
    assert [row.dataset for row in ran.rows] == names
    assert len({row.cell_id for row in ran.rows}) == 4
    assert all(row.ceiling_balanced_accuracy is not None for row in ran.rows)


def test_medmnist_images_run_through_an_encoder_and_a_grid(tmp_path, bench):
    """The official file where it is beside the checkout, else one in its format."""
    root = tmp_path / "medmnist"
    save_medmnist(root / "organamnist.npz")
    if OFFICIAL is not None:
        (root / "organamnist.npz").unlink()
        (root / "organamnist.npz").symlink_to(OFFICIAL / "organamnist.npz")
    data = {"name": "medmnist:organamnist", "root": root, "limit": 2000}
    ran = bench(grid(tmp_path, dataset=data, resources={"clients_per_actor": "all"}))
    assert ran.code == 0, ran.output
    assert {(row.dataset, row.status) for row in ran.rows} == {("organamnist[:2000] (encoder)", "ok")}


def test_an_encoder_that_no_data_set_needs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no data set of the grid holds images; remove it"):
        grid(tmp_path, dataset={"npz": "a.npz"})


def test_two_encoders_of_one_name_are_refused(tmp_path):
    save_folder(tmp_path / "pets")
    with pytest.raises(ValueError, match="two encoders are called 'dino'; rename the file or folder of one"):
        grid(tmp_path, dataset={"imagefolder": tmp_path / "pets"}, encoder=["a/dino", "b/dino"])
