"""What is found out before a cell runs: partitions, plans, layout and the manifest."""

from pathlib import Path
from typing import Any

import pytest
from cells import digits_of_sites, quick, small_cells
from rows import make_published

from fedsim.errors import UserError
from fedsim.results.join import read_manifest
from fedsim.results.store import RunFolder
from fedsim.runs import prepare as prepare_module
from fedsim.runs.manifest import write_manifest
from fedsim.runs.prepare import Need, label_matrices


def number(**values: Any) -> dict[str, Any]:
    """Return the entry of a published number."""
    return make_published(**values).model_dump()


def test_cells_of_one_seed_share_a_partition() -> None:
    prepared = small_cells("dp-gaussian", "weight-noise", epsilon=[1.0, 4.0], seeds=[0, 1])
    trials = prepared.trials
    assert len(trials) == 8
    assert len({(trial.cell.seed, id(trial.partition)) for trial in trials}) == 2
    assert len({trial.partition.fingerprint for trial in trials}) == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"algorithms": ["fedhypevae-sites"], "unit": "client"},
            r"unit \(method fedhypevae-sites\): the method does not support 'client'; it supports: "
            r"example, group",
        ),
        (
            {"epsilon": [1.0, 1e-6]},
            r"epsilon\[1\] \(method dp-gaussian\): 1e-06 is too small",
        ),
        (
            {"clients": 5, "resources": {"clients_per_actor": 1}},
            r"resources.clients_per_actor: 5 clients need 5 actors at once and the cluster has "
            r"room for 4",
        ),
        (
            {"algorithms": ["dp-gaussian", number(measure="acuracy")]},
            r"algorithms\[1\].measure: there is no 'acuracy'; did you mean 'accuracy'",
        ),
        (
            {"algorithms": ["dp-gaussian", number(published=91)]},
            r"algorithms\[1\].published: balanced_accuracy is from 0 to 1",
        ),
        (
            {"algorithms": [number(dataset="digits"), "dp-gaussian"]},
            r"algorithms\[0\].dataset: there is no 'digits'; .*known: digits\[:200\]",
        ),
        (
            {"algorithms": ["dp-gaussian", number(), number(published=0.8)]},
            r"algorithms\[2\]: two published numbers have the same name; give each a label",
        ),
        (
            {"evaluation": {"evaluators": ["knn", "kn"]}},
            r"evaluation.evaluators: there is no evaluator 'kn'; .*knn",
        ),
        (
            {"resources": {"gpus_per_actor": 0.5}},
            r"resources: an actor .* needs 1 CPU and 0.5 GPUs, .* \(4 CPUs and 0 GPUs\)",
        ),
        (
            {"algorithms": [quick("fedhypevae", client_rate=0.5)]},
            r".*client_rate \(method fedhypevae\): 0.5 lets only some .*; give 1, or unit: cl",
        ),
    ],
)
def test_mistake_in_plan_or_layout_names_the_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        small_cells("dp-gaussian", **keys)


@pytest.mark.parametrize("rounds", [3, 5])
@pytest.mark.parametrize("rate", [0.1, 0.2])
def test_plan_follows_the_parameters_of_its_cell(rounds: int, rate: float) -> None:
    entry = quick("fedhypevae", rounds=rounds, sample_rate=rate)
    others = quick("fedhypevae", rounds=4, sample_rate=0.3) | {"label": "others"}
    _, trial = small_cells(others, entry, epsilon=4.0).trials
    assert trial.plan is not None
    release = trial.plan.releases[-1]
    assert release.steps == rounds
    assert release.sample_rate == rate


@pytest.mark.parametrize(
    ("keys", "sizes"),
    [
        ({}, (1, 1, 1, 1)),
        ({"seeds": [0, 1, 2, 3]}, (4,)),
        ({"resources": {"clients_per_actor": 2}}, (2, 2)),
    ],
)
def test_clients_are_spread_over_idle_actors(keys: dict[str, Any], sizes: tuple[int, ...]) -> None:
    prepared = small_cells("dp-gaussian", **keys)
    trial = prepared.trials[0]
    assert trial.sizes == sizes
    assert prepared.need_of(trial) == Need(1.0, actors=len(sizes))


def test_cell_with_large_statistics_has_one_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "MOST_NUMBERS_OF_ACTORS", 100)
    (trial,) = small_cells("dp-gaussian").trials
    assert trial.sizes == (4,)


def test_label_matrices_show_partitions_and_name_sites(tmp_path: Path) -> None:
    prepared = small_cells(
        "dp-gaussian",
        dataset={"npz": str(digits_of_sites(tmp_path)), "overlap": "keep"},
        partition={"scheme": "column-dirichlet", "column": "site"},
    )
    (matrix,) = label_matrices(prepared)
    assert matrix.sites == ("north 0", "south 1", "south 2", "west 3")
    assert matrix.fingerprint == prepared.trials[0].partition.fingerprint


def test_manifest_describes_each_method_and_names_its_paper(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_manifest(folder, small_cells("fedhypevae", "dp-gaussian"), [])
    first, second = read_manifest(tmp_path)["methods"]
    assert first["label"] == "fedhypevae"
    assert first["source"] == "arXiv 2601.00785"
    assert first["text"].startswith("FedHypeVAE under federated DP-SGD.")
    assert second["label"] == "dp-gaussian"
    assert "`" not in second["text"]
    assert "1805.06530" in second["source"]


def repeated(*entries: str, **keys: Any) -> int:
    """The number of cells, of two alphas and two numbers of clients, that are not trained."""
    axes = {"alpha": [0.5, 1.0], "clients": [2, 4]}
    return small_cells(*entries, **axes | keys).repeated


def test_cells_are_equal_if_no_partition_can_change_them() -> None:
    one_shot = ("dp-gaussian", "dp-gmm", "fedhypevae-warm")
    assert repeated(*one_shot, epsilon=[1, 4], seeds=[0, 1, 2]) == 54  # of 72


@pytest.mark.parametrize(
    "keys",
    [
        {"trust": "silo"},
        {"unit": "client"},
        {"partition": {"scheme": "feature-shift"}, "alpha": 1.0},
        {"evaluation": {"per_class": 10, "per_client": True}},
        {"algorithms": [quick("fedhypevae-sites"), quick("weight-noise")]},
    ],
)
def test_cells_are_not_equal_if_a_partition_may_change_them(keys: dict[str, Any]) -> None:
    assert repeated("dp-gaussian", **keys) == 0
