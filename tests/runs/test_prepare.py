"""What is found out before a cell runs: partitions, plans, layout, memory, and what the manifest
says of it.
"""

from pathlib import Path

import pytest
from cells import NODES, digits_of_sites, quick, small_grid

from fedsim.errors import UserError
from fedsim.results.join import read_manifest
from fedsim.results.store import RunFolder
from fedsim.runs.manifest import write_manifest
from fedsim.runs.prepare import Need, Node, label_matrices, prepare


def test_cells_of_other_method_or_epsilon_share_a_partition() -> None:
    trials = prepare(
        small_grid("dp-gaussian", "weight-noise", epsilon=[1.0, 4.0], seeds=[0, 1]), NODES
    ).trials
    assert len(trials) == 8
    assert len({id(trial.partition) for trial in trials}) == 2
    assert all(
        len({id(t.partition) for t in trials if t.cell.seed == seed}) == 1 for seed in (0, 1)
    )


def test_mistakes_in_plan_or_layout_name_the_key_of_the_grid() -> None:
    with pytest.raises(
        UserError,
        match=r"^unit with fedhypevae-sites: does not support 'client'; supported: example, group",
    ):
        prepare(small_grid("fedhypevae-sites", unit="client"), NODES)
    with pytest.raises(UserError, match=r"^epsilon\[1\] with dp-gaussian: 1e-06 is too small"):
        prepare(small_grid("dp-gaussian", "dp-gmm", epsilon=[1.0, 1e-6]), NODES)
    with pytest.raises(
        UserError,
        match=r"^resources.clients_per_actor: 4 clients need 4 actors at once and the cluster "
        r"has room for 2",
    ):
        prepare(small_grid("dp-gaussian", resources={"clients_per_actor": 1}), [Node(2.0, 0.0)])
    with pytest.raises(
        UserError, match=r"^evaluation.evaluators: there is no evaluator 'kn'; .*knn"
    ):
        prepare(small_grid("dp-gaussian", evaluation={"evaluators": ["knn", "kn"]}), NODES)
    with pytest.raises(
        UserError,
        match=r"^resources: an actor needs 1 CPU and 0.5 GPUs; no node has them \(4 CPUs and 0 "
        r"GPUs\)",
    ):
        prepare(small_grid("dp-gaussian", resources={"gpus_per_actor": 0.5}), NODES)
    with pytest.raises(UserError, match=r"^dataset\[1\]: /none.npz: cannot be read .no such file"):
        prepare(small_grid("dp-gaussian", dataset=["digits", {"npz": "/none.npz"}]), NODES)
    with pytest.raises(UserError, match=r"^clients\[1\]: 101 clients × 2"):
        prepare(small_grid("dp-gaussian", clients=[4, 101]), NODES)
    with pytest.raises(
        UserError,
        match=r"client_rate with fedhypevae: 0.5 samples clients, .*; give 1, or unit: client",
    ):
        prepare(small_grid(quick("fedhypevae", client_rate=0.5)), NODES)


def test_a_plan_is_of_the_cells_own_parameters() -> None:
    entries = [
        quick("fedhypevae", rounds=n, sample_rate=q) | {"label": f"{n} {q}"}
        for n in (3, 5)
        for q in (0.1, 0.2)
    ]
    for trial in prepare(small_grid(*entries, epsilon=4.0), NODES).trials:
        assert trial.plan is not None
        release = trial.plan.releases[-1]
        params = trial.cell.params
        assert (release.steps, release.sample_rate) == (params["rounds"], params["sample_rate"])


def test_clients_are_spread_over_actors_that_would_idle() -> None:
    sizes = {trial.sizes for trial in prepare(small_grid("dp-gaussian"), NODES).trials}
    assert sizes == {(1, 1, 1, 1)}
    busy = prepare(small_grid("dp-gaussian", seeds=[0, 1, 2, 3]), NODES)
    assert {trial.sizes for trial in busy.trials} == {(4,)}
    spread = prepare(small_grid("dp-gaussian", resources={"clients_per_actor": 2}), NODES)
    assert spread.need_of(spread.trials[0]) == Need(1.0, actors=2)


def test_label_matrices_show_the_partitions_and_name_sites(
    tmp_path: Path,
) -> None:
    dataset = {"npz": str(digits_of_sites(tmp_path)), "overlap": "keep"}
    partition = {"scheme": "column-dirichlet", "column": "site"}
    prepared = prepare(
        small_grid("dp-gaussian", dataset=dataset, partition=partition, clients=4), NODES
    )
    (made,) = label_matrices(prepared)
    assert made.sites == ("north 0", "south 1", "south 2", "west 3")
    assert made.fingerprint == prepared.trials[0].partition.fingerprint


def test_manifest_describes_each_method_and_names_its_paper(tmp_path: Path) -> None:
    write_manifest(
        folder := RunFolder(tmp_path), prepare(small_grid("fedhypevae", "dp-gaussian"), NODES), []
    )
    first, second = read_manifest(folder.path)["methods"]
    assert first["label"] == "fedhypevae"
    assert first["source"] == "arXiv 2601.00785"
    assert first["text"].startswith("FedHypeVAE under federated DP-SGD.")
    assert (second["label"], "`" in second["text"], "1805.06530" in second["source"]) == (
        "dp-gaussian",
        False,
        True,
    )


def test_cells_are_equal_if_no_partition_can_change_them() -> None:
    keys = {"alpha": [0.5, 1.0], "clients": [2, 4]}
    one_shot = ("dp-gaussian", "dp-gmm", "fedhypevae-warm")
    assert (
        prepare(small_grid(*one_shot, epsilon=[1, 4], seeds=[0, 1, 2], **keys), NODES).repeated
        == 54
    )  # of 72
    for other in (
        {"trust": "silo"},
        {"unit": "client"},
        {"partition": {"scheme": "feature-shift"}, "alpha": 1.0},
    ):
        assert prepare(small_grid("dp-gaussian", **(keys | other)), NODES).repeated == 0
    per_client = {"evaluation": {"per_class": 10, "per_client": True}}
    assert prepare(small_grid("fedhypevae-sites", "weight-noise", **keys), NODES).repeated == 0
    assert prepare(small_grid("dp-gaussian", **keys, **per_client), NODES).repeated == 0
