import hashlib
import json
import math
import os

import numpy as np
import pytest
import torch
from cells import SHIPPED, quick, score_probe, small_cells, small_grid
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import fedsim
from fedsim.errors import UserError
from fedsim.plugins.registry import lookup
from fedsim.results.folder import RunFolder
from fedsim.results.generators import load_generator, save_generator
from fedsim.training.state import described
from fedsim.training.trial import Outcome, run_trial


def saved(folder, entry, **keys):
    """Train one small cell and save its generator; the prepared cell and its outcome."""
    prepared = small_cells(entry, **{"epsilon": 4.0, **keys})
    (trial,), (data,) = prepared.trials, prepared.data.values()
    *_, outcome = run_trial(trial, data)
    assert isinstance(outcome, Outcome)
    spent = {"status": "ok", "epsilon_spent": outcome.epsilon_spent, "accountant": outcome.accountant}
    save_generator(RunFolder(folder), trial, ("zero",), outcome.generator, spent, {"fedsim": "0"})
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
    _, _, outcome = saved(tmp_path, quick("fedhypevae", average_from=0.5))
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
    *_, outcome = saved(tmp_path, "fedhypevae")
    manifest = load_generator(tmp_path).manifest(per_class=7)
    expected = {
        "epsilon": outcome.epsilon_spent,
        "epsilon_target": 4.0,
        "delta": 1e-4,
        "unit": "example",
        "trust": "aggregate",
        "claim": "proved",
    }
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


def test_of_many_generators_an_error_names_a_few_in_full(bench):
    ran = bench(small_grid("dp-gaussian", epsilon=[1.0, 4.0], seeds=[0, 1, 2], resources={"clients_per_actor": "all"}))
    named = r"\w{16} \(dp-gaussian · ε = [14] · seed [012]\)"
    with pytest.raises(UserError, match=rf"several generators \(({named}, ){{3}}{named} and 2 more\); name one with --cell"):
        load_generator(ran.folder)


def test_a_generator_of_secret_noise_is_found_by_its_rows_cell_though_its_file_has_another_name(bench):
    ran = bench(small_grid("dp-gaussian", epsilon=[1.0, 4.0], privacy={"noise": "secret"}))
    names = {path.stem for path in (ran.folder / "generators").glob("*.json")}
    for row in ran.rows:
        assert row.cell_id not in names
        assert load_generator(ran.folder, row.cell_id).facts.epsilon_spent == row.epsilon_spent
    with pytest.raises(UserError, match=r"several generators \(\w+ \(dp-gaussian · ε = [14] · seed 0\), \w+ \(dp-gaussian · ε = [14] "):
        load_generator(ran.folder)


@pytest.mark.parametrize("what", ["text", "folder"])
def test_one_file_that_cannot_be_read_hides_no_other_generator(bench, what):
    ran = bench(small_grid("dp-gaussian", epsilon=[1.0, 4.0], privacy={"noise": "secret"}))
    rows = {row.generator: row for row in ran.rows}
    broken, whole = sorted((ran.folder / "generators").glob("*.json"))
    kept = rows[hashlib.sha256(whole.read_bytes()).hexdigest()]
    broken.unlink()
    broken.write_text("{") if what == "text" else broken.mkdir()
    assert load_generator(ran.folder, kept.cell_id).facts.epsilon_spent == kept.epsilon_spent
    with pytest.raises(UserError, match=f"there is no generator of this cell in .* known: {broken.stem}, {whole.stem} "):
        load_generator(ran.folder, "none")


def test_generators_are_not_kept_where_the_grid_says_so(bench):
    ran = bench(small_grid("dp-gaussian", resources={"clients_per_actor": "all", "save_generators": False}))
    assert ran.rows[0].status == "ok"
    with pytest.raises(UserError, match="there are no generators here"):
        load_generator(ran.folder)


def test_a_damaged_file_is_named_and_nothing_is_unpickled(tmp_path):
    trial, _, _ = saved(tmp_path, "dp-gaussian")
    path = tmp_path / "generators" / f"{trial.cell.cell_id}.safetensors"
    path.write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(UserError, match="is not what was saved"):
        load_generator(tmp_path)


def rewritten(folder, facts=lambda facts: None, tensors=lambda tensors: None, *, hashed=True):
    """Change a saved generator's files, its hash with them: what somebody could do who wants them to be believed."""
    (path,) = (folder / "generators").glob("*.json")
    told, held = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    tensors(held)
    save_file(held, path.with_suffix(".safetensors"))
    if hashed:
        told["sha256"] = hashlib.sha256(path.with_suffix(".safetensors").read_bytes()).hexdigest()
        told["tensors"] = described(held)
    facts(told)
    path.write_text(json.dumps(told))


TENSORS = {
    "one is missing": (lambda held: held.pop("server.tensors.within"), r"within' \(float32 \[64, 64\]\) is missing"),
    "all are missing": (lambda held: held.clear(), "is missing"),
    "one too many": (lambda held: held.update(more=torch.zeros(2)), r"there is a tensor 'more' \(float32 \[2\]\) too many"),
    "another dtype": (lambda held: held.update({"server.tensors.within": torch.zeros(64, 64).double()}), "is float64"),
    "another shape": (lambda held: held.update({"server.tensors.within": torch.zeros(8, 8)}), r"is float32 \[8, 8\], not float32 \[64"),
    "other numbers": (lambda held: held["server.tensors.within"].mul_(1.001), "its SHA-256 is not the one in the JSON file"),
}


@pytest.mark.parametrize("change", TENSORS)
def test_tensors_that_are_not_those_of_the_facts_are_refused(tmp_path, change):
    saved(tmp_path, "dp-gaussian")
    tensors, message = TENSORS[change]
    rewritten(tmp_path, tensors=tensors, hashed=False)
    with pytest.raises(UserError, match=f"is not what was saved .*{message}.*; run the cell again"):
        load_generator(tmp_path)


FORGED = {
    "a parameter is missing": (lambda held: held.pop(min(n for n in held if n.startswith("server.model."))), "is missing"),
    "a parameter is of another dtype": (lambda held: held.update({each: held[each].double() for each in list(held)}), "is float64"),
    "a code too few": (lambda held: held.update({"codes.code.weight": held["codes.code.weight"][1:].clone()}), r"is float32 \[3, "),
    "a parameter that the model has not": (lambda held: held.update({"server.model.more": torch.zeros(2)}), "too many"),
    "a number that is none": (lambda held: held["codes.code.weight"].fill_(math.nan), "not finite"),
    "no tensor at all": (lambda held: held.clear(), "is missing"),
}


@pytest.mark.parametrize("change", FORGED)
def test_tensors_that_are_not_the_algorithms_are_refused_whatever_the_facts_say(tmp_path, change):
    saved(tmp_path, "fedhypevae")
    tensors, message = FORGED[change]
    rewritten(tmp_path, tensors=tensors)
    with pytest.raises(UserError, match=f"is no generator of fedhypevae .*{message}"):
        load_generator(tmp_path)


def test_what_a_one_shot_method_cannot_use_is_refused_whatever_the_facts_say(tmp_path):
    saved(tmp_path, "dp-gaussian")
    rewritten(tmp_path, tensors=lambda held: held.pop("server.tensors.within"))
    with pytest.raises(UserError, match=r"is no generator of dp-gaussian \(KeyError: 'within'\)"):
        load_generator(tmp_path)


def put(*path_and_value):
    *path, last, value = path_and_value

    def change(facts):
        for key in path:
            facts = facts[key]
        facts[last] = value

    return change


FACTS = {
    "no number": (put("epsilon_spent", "much"), "epsilon_spent: Input should be a valid number"),
    "an epsilon beyond its target": (put("epsilon_spent", 40.0), "which is not what status 'ok' says"),
    "a target that is not the cell's": (put("plan", "epsilon_target", 1.0), "cell and plan differ"),
    "no plan": (put("plan", None), "cell and plan differ in epsilon"),
    "a delta that is none": (put("cell", "delta", math.nan), "differ|cannot be read"),
    "a negative seed": (put("cell", "seed", -1), "cell.seed is -1"),
    "a negative dimension": (put("task", "dim", -64), "task.dim is -64"),
    "more classes than anybody has": (put("task", "classes", 10**12), "task.classes is 1000000000000"),
    "clients that are not the cell's": (put("task", "clients", 5), "cell and task differ"),
    "a parameter that is none": (put("cell", "params", {"rank": "many"}), "is no generator of dp-gaussian .*rank"),
    "an algorithm that there is not": (put("cell", "algorithm", "none"), "unknown algorithm"),
    "another dimension": (put("task", "dim", 32), "is no generator of dp-gaussian"),
    "a key more": (put("more", 1), "more: Extra inputs are not permitted"),
    "a claim that there is not": (put("plan", "claim", "certain"), "plan.claim"),
}


@pytest.mark.parametrize("change", FACTS)
def test_wrong_facts_are_told_in_one_line(tmp_path, change):
    saved(tmp_path, "dp-gaussian")
    facts, message = FACTS[change]
    rewritten(tmp_path, facts)
    with pytest.raises(UserError, match=message) as caught:
        load_generator(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "[" * 100_000 + "]" * 100_000, '{"cell": ' * 500, "\x00"])
def test_what_is_no_json_of_a_generator_is_told_in_one_line(tmp_path, text):
    trial, _, _ = saved(tmp_path, "dp-gaussian")
    (tmp_path / "generators" / f"{trial.cell.cell_id}.json").write_text(text)
    with pytest.raises(UserError, match="cannot be read") as caught:
        load_generator(tmp_path)
    assert "\n" not in str(caught.value)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_file_is_refused(tmp_path, data):
    if not (tmp_path / "generators").exists():
        saved(tmp_path, "dp-gaussian")
    path = data.draw(st.sampled_from(sorted((tmp_path / "generators").iterdir())))
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:place] + bytes([data.draw(st.integers(0, 255))]) + whole[place + 1 :])
    before = path.read_bytes()
    try:
        load_generator(tmp_path)
    except UserError:
        pass
    else:  # only what a row would give away, such as a version's digit
        assert before == whole or path.suffix == ".json"
    finally:
        path.write_bytes(whole)


def test_a_generator_of_an_older_fedsim_is_refused_with_a_way_on(tmp_path):
    saved(tmp_path, "dp-gaussian")
    rewritten(tmp_path, lambda facts: [facts.pop(name) for name in ("tensors", "sha256")])
    with pytest.raises(UserError, match=r"was saved by an older fedsim, without the hash .*; run the cell again in a new folder"):
        load_generator(tmp_path)


def test_a_row_vouches_for_the_facts(bench):
    ran = bench(small_grid("dp-gaussian", resources={"clients_per_actor": "all"}))
    (row,) = ran.rows
    (path,) = (ran.folder / "generators").glob("*.json")
    assert row.generator == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load_generator(ran.folder)
    assert loaded.vouched
    assert loaded.manifest(5)["vouched"] == "by a row of its run"
    honest = path.read_text()
    path.write_text(honest.replace('"claim": "proved"', '"claim": "checked"'))
    with pytest.raises(UserError, match=r"no row of .*results\.jsonl has its hash"):
        load_generator(ran.folder)
    path.write_text(honest)
    (ran.folder / "results.jsonl").unlink()
    assert load_generator(ran.folder).manifest(5)["vouched"] == "by nothing: no results were with it"


def vouched(folder, facts=lambda facts: None, **fields):
    """Change a generator's facts and its row, which vouches for them as they are then."""
    rewritten(folder, facts)
    (path,) = (folder / "generators").glob("*.json")
    row = json.loads((folder / "results.jsonl").read_text().splitlines()[-1])
    fields["generator"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "results.jsonl").write_text(json.dumps(row | fields) + "\n")


def both(name, value):
    """Put into facts' plan and row alike."""
    return put("plan", name, value), {name: value}


FORGERIES = {
    "a lower epsilon than the row's": (put("epsilon_spent", 0.01), {}, "differs from the row of its cell: epsilon_spent 0.01 and not 3.9"),
    "a lower epsilon in the row": (lambda facts: None, {"epsilon_spent": 0.01}, "differs .* epsilon_spent 3.9.* and not 0.01"),
    "another seed": (put("cell", "seed", 7), {}, "differs .* seed 7 and not 0"),
    "another sigma": (put("plan", "sigma", 50.0), {}, "differs .* mechanisms; sigma 50.0 and not"),
    "another claim": (put("plan", "claim", "checked"), {}, "differs .* claim checked and not proved"),
    "secret noise": (put("cell", "noise", "secret"), {}, "differs .* noise secret and not seeded"),
    "other parameters": (put("cell", "params", {"rank": 2}), {}, "differs .* params"),
    "a lower epsilon in both": (put("epsilon_spent", 0.01), {"epsilon_spent": 0.01}, "contradicts itself: ε is 0.003 of what its mechan"),
    "a lower sensitivity in both": (*both("sensitivity", 1e-6), "contradicts itself: sensitivity 1e-6 is below the clip"),
    "a larger clip in both": (*both("sensitivity", 2.0), "contradicts itself: sensitivity is 2 and in its plan 1"),
    "another scope in both": (*both("scope", "everything"), "contradicts itself: scope is everything"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_generator_whose_facts_row_and_plan_say_different_things_is_refused_and_nothing_is_written(folder, command, bench, name):
    bench(small_grid("dp-gaussian", epsilon=4.0), "run")
    facts, fields, message = FORGERIES[name]
    vouched(folder / "run", facts, **fields)
    with pytest.raises(UserError, match=message):
        load_generator(folder / "run")
    done = command("synth", "run", "--out", "s.npz")
    assert (done.returncode, len(done.stderr.splitlines()), (folder / "s.npz").exists()) == (2, 1, False)


def test_facts_without_a_row_are_held_against_the_plan_of_their_algorithm(tmp_path):
    saved(tmp_path, "dp-gaussian")
    assert load_generator(tmp_path).warnings == ()
    rewritten(tmp_path, put("plan", "clip", 0.5))
    with pytest.raises(UserError, match=r"contradicts itself: clip is 0\.5 and in its plan 1"):
        load_generator(tmp_path)
    rewritten(tmp_path, put("cell", "source", "0" * 16))
    assert "the code here is not the one that ran, and differs: clip is 0.5" in load_generator(tmp_path).warnings[0]


def test_a_delta_that_would_publish_a_row_is_told_with_every_draw_proof_and_statement(folder, command, bench):
    bench(small_grid("dp-gaussian", epsilon=4.0, delta=0.01), "run")
    for arguments in (("synth", "run", "--out", "s.npz"), ("prove", "run"), ("statement", "run")):
        done = command(*arguments)
        assert done.returncode == 0, done.stderr
        assert "δ = 0.01 is not below 1/n = 0.005 for the 200 training rows" in " ".join(done.stdout.split())


def test_a_generator_under_the_name_of_another_cell_is_refused(bench):
    ran = bench(small_grid("dp-gaussian", seeds=[0, 1]))
    one, other = [row.cell_id for row in ran.rows]
    for suffix in (".json", ".safetensors"):
        (ran.folder / "generators" / f"{one}{suffix}").replace(ran.folder / "generators" / f"{other}{suffix}")
    with pytest.raises(UserError, match=rf"{other}\.json: holds the generator of cell {one}"):
        load_generator(ran.folder, other)


EVIL = """
from pathlib import Path
Path("evil ran").touch()
from baselines.dp_gaussian import DPGaussian as X
"""


@pytest.mark.parametrize("name", ["evil.py:X", "evil:X", "{folder}/evil.py:X", "fedsim.results.nowhere:X"])
def test_a_generator_runs_no_code_that_nobody_installed(folder, command, name):
    saved(folder / "run", "dp-gaussian")
    (folder / "evil.py").write_text(EVIL)
    (folder / "evil.egg-info").mkdir()
    (folder / "evil.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
    (folder / "evil.egg-info" / "top_level.txt").write_text("evil\n")
    (folder / "evil.egg-info" / "entry_points.txt").write_text("[fedsim.algorithms]\nevil = evil:X\n")
    rewritten(folder / "run", put("cell", "algorithm", name.format(folder=folder)))
    done = command("synth", "run", "--out", "s.npz")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert ("give --trust-plugin if you trust that code" in done.stderr) == ("evil" in name)
    assert not (folder / "evil ran").exists()


def test_a_registered_name_is_not_what_a_working_folder_says(folder, command):
    saved(folder / "run", "dp-gaussian")
    (folder / "evil.py").write_text(EVIL)
    (folder / "evil.egg-info").mkdir()
    (folder / "evil.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
    (folder / "evil.egg-info" / "entry_points.txt").write_text("[fedsim.algorithms]\nevil = evil:X\n")
    rewritten(folder / "run", put("cell", "algorithm", "evil"))
    done = command("synth", "run", "--out", "s.npz")
    assert done.returncode == 2
    assert not (folder / "evil ran").exists()


def test_a_trusted_plug_in_runs(folder, command):
    saved(folder / "run", "dp-gaussian")
    (folder / "evil.py").write_text(EVIL)
    rewritten(folder / "run", put("cell", "algorithm", "evil.py:X"))
    done = command("synth", "run", "--out", "s.npz", "--trust-plugin")
    assert done.returncode == 0, done.stderr
    assert (folder / "evil ran").exists()
    assert "no run/results.jsonl is there to vouch for it" in done.stdout


@pytest.mark.parametrize("arguments", [["--seed", "-1"], ["--seed", str(2**64)], ["--per-class", "0"], ["--per-class", str(10**12)]])
def test_a_draw_that_cannot_be_is_refused(folder, command, arguments):
    saved(folder / "run", "dp-gaussian")
    done = command("synth", "run", "--out", "s.npz", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    with pytest.raises(UserError, match="-1 is no seed"):
        load_generator(folder / "run").sample([0], seed=-1)


def test_a_draw_is_refused_whose_rows_alone_would_fit(tmp_path, monkeypatch):
    trial, _, _ = saved(tmp_path, "dp-gaussian")
    generator, rows = load_generator(tmp_path), 4 * trial.task.classes * trial.task.dim * 100
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": rows, "SC_PHYS_PAGES": 2}.__getitem__)
    with pytest.raises(UserError, match="to draw them takes 4 times that or more"):
        generator.synthesise(100)
    assert len(generator.synthesise(50)[0]) == 50 * trial.task.classes
