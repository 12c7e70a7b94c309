import os
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import numpy as np
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
from fedsim.planning.node import Node, Share, fit_together
from fedsim.planning.prepare import prepare
from fedsim.runs import embedding
from fedsim.runs.embedding import EmbedActor, gpu_share, on_actors

REPOSITORY = Path(__file__).parents[2]
OFFICIAL = next((f for f in (REPOSITORY / "shared/data", REPOSITORY.parent / "shared/data") if (f / "organamnist.npz").is_file()), None)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))


def test_several_actors_give_the_embeddings_of_one_process(tmp_path, monkeypatch, ray_cluster):
    spec = save_encoder(tmp_path / "encoder")
    images = load_image_folder(save_folder(tmp_path / "pets", each=250), "pets")
    job = EmbedJob(images, locate(spec), spec)
    assert job.shards == 2
    with np.load(embed(job, Console(quiet=True))) as held:
        alone = held["x"]
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "second"))
    with np.load(embed(job, Console(quiet=True), work=on_actors(2, Node(2.0, 0.0), nullcontext()))) as held:
        np.testing.assert_allclose(held["x"], alone, atol=1e-5)


class Dies(EmbedActor):
    def run(self, numbers):
        yield os._exit(1)


def test_an_actor_that_dies_is_no_mistake_of_who_gave_the_command(tmp_path, monkeypatch, ray_cluster):
    spec = save_encoder(tmp_path / "encoder")
    job = EmbedJob(load_image_folder(save_folder(tmp_path / "pets", each=2), "pets"), locate(spec), spec)
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


def test_a_grid_of_24_cells_decodes_each_image_once(tmp_path, monkeypatch):
    save_folder(tmp_path / "pets", each=12)
    decoded = []
    original = ImageFiles.decoder
    monkeypatch.setattr(ImageFiles, "decoder", lambda images, row: decoded.append(row) or original(images, row))
    axes = {"alpha": [0.5, 1.0], "epsilon": [1, 4], "seeds": [0, 1, 2]}
    prepared = prepare(grid(tmp_path, dataset={"imagefolder": tmp_path / "pets"}, **axes), NODES)
    assert len(prepared.trials) == 24
    assert sorted(decoded) == list(range(36))
    prepare(grid(tmp_path, dataset={"imagefolder": tmp_path / "pets"}, **axes), NODES)
    assert len(decoded) == 36


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
    assert {(row.dataset, row.status) for row in ran.rows} == {("organamnist[:2000]", "ok")}


def test_an_encoder_that_no_data_set_needs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no data set of the grid holds images; remove it"):
        grid(tmp_path, dataset={"npz": "a.npz"})
