import json
import math

import numpy as np
import pytest
from cells import SHIPPED, quick, score_probe, small_cells, small_grid

import fedsim
from fedsim.errors import UserError
from fedsim.methods.registry import lookup
from fedsim.results.folder import RunFolder
from fedsim.simulation.generators import load_generator, save_generator
from fedsim.simulation.trial import Outcome, run_trial

SPENT = {"status": "ok", "epsilon_spent": 3.9, "accountant": "prv"}


def saved(folder, entry, **keys):
    """Train one small cell and save its generator; the prepared cell and its outcome."""
    prepared = small_cells(entry, **{"epsilon": 4.0, **keys})
    (trial,), (data,) = prepared.trials, prepared.data.values()
    *_, outcome = run_trial(trial, data)
    assert isinstance(outcome, Outcome)
    save_generator(RunFolder(folder), trial, ("zero",), outcome.generator, SPENT, {"fedsim": "0"})
    return trial, data, outcome


@pytest.mark.parametrize("name", [name for name in SHIPPED if lookup(name).generates()])
def test_a_saved_generator_gives_the_rows_that_its_cell_was_scored_on(tmp_path, name):
    trial, data, outcome = saved(tmp_path, name)
    x, y = load_generator(tmp_path).synthesise(trial.cell.evaluation.per_class)
    again = score_probe(x, y, data.x_test, data.y_test, trial.cell.evaluation.probe_c)
    # plain accuracy knows the released labels too
    again.pop("accuracy")
    assert again == {name: outcome.scores[name] for name in again}


def test_neutral_mixture_and_client_differ_and_draws_follow_the_seed(tmp_path):
    saved(tmp_path, "fedhypevae")
    labels = np.arange(10)
    made = [load_generator(tmp_path, synthesis=way).sample(labels) for way in ("neutral", "mixture", "client:0", "client:3")]
    assert len({x.tobytes() for x in made}) == 4
    assert made[0].shape == (10, 64)
    np.testing.assert_array_equal(load_generator(tmp_path).sample(labels), made[0])
    assert not np.array_equal(load_generator(tmp_path).sample(labels, seed=1), made[0])


@pytest.mark.parametrize("noised", ["all", "shared"])
def test_a_clients_code_is_used_only_if_it_was_released(tmp_path, noised):
    saved(tmp_path, quick("fedhypevae", noised=noised))
    if noised == "all":
        load_generator(tmp_path, synthesis="client:1")
    else:
        with pytest.raises(UserError, match="under noised: shared the client codes carry no noise, so they never left their clients"):
            load_generator(tmp_path, synthesis="client:1")
        load_generator(tmp_path, synthesis="mixture")


@pytest.mark.parametrize(
    ("name", "synthesis", "message"),
    [
        ("fedhypevae", "client:4", "there are 4 clients; give client:0 .. client:3"),
        ("fedhypevae", "client:x", "is not known; give neutral, mixture, or client: and a number"),
        ("fedhypevae", "average", "is not known"),
        ("dp-gaussian", "neutral", "dp-gaussian has one way to synthesise; leave it out"),
        ("dp-gaussian", "client:0", "dp-gaussian has one generator for all clients"),
    ],
)
def test_a_synthesis_that_there_is_not_is_named(tmp_path, name, synthesis, message):
    saved(tmp_path, name)
    with pytest.raises(UserError, match=message) as caught:
        load_generator(tmp_path, synthesis=synthesis)
    assert caught.value.where == f"--synthesis {synthesis}"


def test_what_is_saved_holds_no_optimiser_no_encoder_of_a_client_and_no_iterate_beside_its_mean(tmp_path):
    _, _, outcome = saved(tmp_path, "fedhypevae")
    names = outcome.generator.keys()
    assert not [name for name in names if "adam" in name or "encoder" in name]
    means = [name.removeprefix("server.tensors.average.") for name in names if name.startswith("server.tensors.average.")]
    assert means
    assert not [name for name in means if f"server.model.{name}" in names]
    assert "codes.code.weight" in names


def test_without_noise_on_the_codes_they_are_not_in_the_file(tmp_path):
    _, _, outcome = saved(tmp_path, quick("fedhypevae", noised="shared"))
    assert not [name for name in outcome.generator if name.startswith("codes.")]


def test_the_manifest_carries_what_was_paid(tmp_path):
    saved(tmp_path, "fedhypevae")
    manifest = load_generator(tmp_path).manifest(per_class=7)
    expected = {"epsilon": 3.9, "epsilon_target": 4.0, "delta": 1e-4, "unit": "example", "trust": "aggregate", "claim": "proved"}
    assert {key: manifest[key] for key in expected} == expected
    assert manifest["synthesis"] == "neutral"
    json.dumps(manifest, allow_nan=False)


def test_a_generator_without_privacy_says_so(tmp_path):
    (tmp_path / "open").mkdir()
    saved(tmp_path / "open", "fedavg-cvae")
    manifest = load_generator(tmp_path / "open").manifest(5)
    assert (manifest["claim"], manifest["delta"]) == ("none", None)
    (tmp_path / "free").mkdir()
    saved(tmp_path / "free", "fedhypevae", epsilon=math.inf)
    manifest = load_generator(tmp_path / "free").manifest(5)
    assert (manifest["claim"], manifest["epsilon_target"]) == ("none", "inf")


def test_labels_that_are_none_are_refused(tmp_path):
    saved(tmp_path, "dp-gaussian")
    generator = load_generator(tmp_path)
    for labels in ([10], [-1], [0.5], [[0]]):
        with pytest.raises(UserError, match=r"give labels 0 .. 9"):
            generator.sample(labels)


def test_a_run_saves_a_generator_for_every_cell(bench):
    ran = bench(small_grid("dp-gaussian", epsilon=[1.0, 4.0], resources={"clients_per_actor": "all"}))
    ids = sorted(path.stem for path in (ran.folder / "generators").glob("*.json"))
    assert ids == sorted(row.cell_id for row in ran.rows)
    row = ran.rows[0]
    assert fedsim.load_generator(ran.folder, row.cell_id[:10]).facts.epsilon_spent == row.epsilon_spent
    with pytest.raises(UserError, match=r"there are several generators .*; name one with --cell"):
        load_generator(ran.folder)
    with pytest.raises(UserError, match="there is no generator of this cell"):
        load_generator(ran.folder, "none")
    assert set(fedsim.load_results(ran.folder)["cell_id"]) == set(ids)


def test_generators_are_not_kept_where_the_grid_says_so(bench):
    ran = bench(small_grid("dp-gaussian", resources={"clients_per_actor": "all", "save_generators": False}))
    assert ran.rows[0].status == "ok"
    with pytest.raises(UserError, match="there are no generators here"):
        load_generator(ran.folder)


def test_a_damaged_file_is_named_and_nothing_is_unpickled(tmp_path):
    trial, _, _ = saved(tmp_path, "dp-gaussian")
    path = tmp_path / "generators" / f"{trial.cell.cell_id}.safetensors"
    path.write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(UserError, match="cannot be read"):
        load_generator(tmp_path)
