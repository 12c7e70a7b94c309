"""The grids of ``benchmarks/``: all valid, and those of images run where the images are."""

from pathlib import Path

import pytest
from cells import NODES
from pictures import save_encoder, save_folder, save_milk10k

from fedsim.errors import UserError
from fedsim.grid.read import load_grid
from fedsim.grid.resolve import resolve
from fedsim.runs.prepare import prepare

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.name for path in BENCHMARKS.glob("*.yaml")))
def test_every_shipped_grid_is_valid(name: str) -> None:
    resolved = resolve(load_grid(BENCHMARKS / name))
    assert resolved.variants
    assert not resolved.refused


@pytest.mark.parametrize("name", sorted(path.name for path in BENCHMARKS.glob("*.yaml")))
def test_every_shipped_grid_names_its_data_by_recipe(name: str) -> None:
    for spec in load_grid(BENCHMARKS / name).sets:
        assert spec.path is None or spec.path.is_relative_to(BENCHMARKS)
        assert spec.holds_images == (spec.title != "digits")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, in which nothing is."""
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path


def small(home: Path) -> list[str]:
    save_encoder(home / "encoder")
    return [f"encoder={home / 'encoder'}", "seeds=[0]", "epsilon=[8]"]


def test_image_types_of_milk10k_are_clients(home: Path) -> None:
    save_milk10k(home / "cache" / "milk10k")
    prepared = prepare(load_grid(BENCHMARKS / "sites_milk10k.yaml", small(home)), NODES)
    assert len(prepared.trials) == 5
    rows, (data,) = prepared.trials[0].partition.rows, prepared.data.values()
    assert [set(data.columns["image_type"][own]) for own in rows] == [{"clinical: close-up"}, {"dermoscopic"}]


def test_domains_of_an_image_folder_are_clients(home: Path) -> None:
    for start, domain in enumerate(("photo", "sketch")):
        save_folder(home / "pictures" / domain, each=12, start=100 * start)
    given = [f"dataset={{imagefolder: {home / 'pictures'}, domains: true}}", "clients=2", *small(home)]
    prepared = prepare(load_grid(BENCHMARKS / "sites_images.yaml", given), NODES)
    rows, (data,) = prepared.trials[0].partition.rows, prepared.data.values()
    assert [set(data.columns["domain"][own]) for own in rows] == [{"photo"}, {"sketch"}]
    assert set(data.test_columns["domain"]) == {"photo", "sketch"}


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("sites_milk10k.yaml", "there is no MILK10k_Training_Input; download"),
        ("sites_images.yaml", "there is no such folder; give a folder"),
    ],
)
def test_where_the_images_are_not_one_message_says_what_to_do(home: Path, name: str, what: str) -> None:
    with pytest.raises(UserError, match=f"{name}:[0-9]+: dataset: .*{what}"):
        prepare(load_grid(BENCHMARKS / name), NODES)
