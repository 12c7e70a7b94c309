import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from benches import Ran
from cells import small_grid

from fedsim.data.spec import DatasetSpec
from fedsim.errors import UserError
from fedsim.report.dataset_card import DATA_FILE, write_hub_folder
from fedsim.results.generators import load_generator
from fedsim.results.store import ResultStore


@pytest.fixture
def run(bench: Callable[..., Ran]) -> Path:
    return bench(
        small_grid("dp-gaussian", epsilon=4.0, privacy={"noise": "secret"}),
        "run",
    ).folder


@pytest.fixture
def hub(run: Path, tmp_path: Path) -> Path:
    write_hub_folder(load_generator(run), tmp_path / "hub", per_class=5)
    return tmp_path / "hub"


def test_the_hub_loads_the_folder_as_it_is(hub: Path, run: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    rows = load_dataset(
        str(hub),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    ).with_format("numpy")
    x, y = load_generator(run).synthesise(5)
    np.testing.assert_array_equal(rows["embedding"][:], x)
    np.testing.assert_array_equal(rows["label"][:], y)
    assert rows.features["label"].names == list(map(str, range(10)))


def test_card_states_budget_and_what_is_not_covered(hub: Path) -> None:
    card = (hub / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n", 2)[1])
    assert (front["license"], front["configs"][0]["data_files"][0]["path"]) == (
        "cc-by-4.0",
        DATA_FILE,
    )
    assert "differential-privacy" in front["tags"]
    assert "50 synthetic embeddings of 64 dimensions and 10 classes" in card
    assert "Scale real embeddings to norm 1 before you compare them with these" in card
    assert re.search(r"\*\*budget\*\*: ε = 3\.9\d* \(target 4\) at δ = 0\.0001", card)
    assert "**claim**: proved: (ε, δ) is a theorem for this method" in card
    assert "### Not covered\n\n- a person with several examples" in card
    assert "a second release from the same data" in card
    assert (
        r"Trained on digits\[:200\] (scikit-learn, UCI). Licence of that data set: CC BY 4.0."
        in card
    )


def test_hub_folder_holds_no_exact_function_of_real_data(hub: Path, run: Path) -> None:
    """Hashes of data and partitions, and scores, are exact."""
    (row,) = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    (training,) = ResultStore(run).last("trainings")
    content = "".join(
        path.read_bytes().decode("latin-1") for path in hub.rglob("*") if path.is_file()
    )
    exact = (
        row["cell_id"],
        training,
        row["dataset_hash"],
        row["partition_hash"],
        row["balanced_accuracy"],
    )
    assert not [value for value in exact if str(value) in content]


def test_seeded_noise_and_filled_folders_are_refused(
    bench: Callable[..., Ran], hub: Path, run: Path, tmp_path: Path
) -> None:
    seeded = bench(small_grid("dp-gaussian", epsilon=4.0), "seeded").folder
    with pytest.raises(
        UserError,
        match="may not be released: the seed of its noise is known",
    ):
        write_hub_folder(load_generator(seeded), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match="is neither a new folder nor an empty one"):
        write_hub_folder(load_generator(run), hub)


@pytest.mark.parametrize(
    ("given", "licence"), [("ham10000", "CC BY-NC 4.0"), ({"npz": "a.npz"}, "")]
)
def test_the_licence_is_that_of_the_catalogue_or_unknown(given: Any, licence: str) -> None:
    assert DatasetSpec.model_validate(given).terms[0] == licence
