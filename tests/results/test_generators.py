import json
import math
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from cells import SHIPPED, quick, score_probe, small_cells, small_grid
from rows import ERROR, kept, ran

import fedsim
from fedsim.errors import UserError
from fedsim.evaluation.judge import judgement_of
from fedsim.json_lines import dump
from fedsim.plugins.registry import lookup
from fedsim.results.folder import RunFolder
from fedsim.results.generators import PUBLIC_COLUMNS, load_generator, release
from fedsim.results.result_lines import RowError, judgement_line, training_line
from fedsim.results.store import ResultStore
from fedsim.training.trial import Outcome, run_trial

SECRET = {"privacy": {"noise": "secret"}}


def saved(folder, entry, change=lambda outcome: outcome, **keys):
    """Train one small cell and keep what it left in a run folder; the prepared cell, its data and its outcome."""
    prepared = small_cells(entry, **{"epsilon": 4.0, **keys})
    (trial,), (data,) = prepared.trials, prepared.data.values()
    *_, outcome = run_trial(trial, data)
    assert isinstance(outcome, Outcome)
    kept(folder, trial, change(outcome), ("zero",))
    return trial, data, outcome


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Puts the package of one small cell into a folder, and its run into the folder ``run`` beside; trained once an algorithm.

    Returns the JSON file of the package, and the cell.
    """
    made = {}

    def released(folder, entry):
        if entry not in made:
            home = tmp_path_factory.mktemp("released")
            trial, *_ = saved(home / "run", entry, **SECRET)
            made[entry] = home, trial.cell, release(home / "run", None, home / "package")[0].name
        home, cell, name = made[entry]
        shutil.copytree(home / "run", folder.with_name("run"), dirs_exist_ok=True)
        shutil.copytree(home / "package", folder)
        return folder / name, cell

    return released


@pytest.fixture
def package(tmp_path):
    """Where a package goes."""
    return tmp_path / "package"


@pytest.mark.parametrize("name", [name for name in SHIPPED if lookup(name).generates()])
def test_a_saved_generator_gives_the_rows_that_its_cell_was_scored_on(tmp_path, name):
    trial, data, outcome = saved(tmp_path, name, evaluation={"per_class": 10, "probe_c": 0.5})
    x, y = load_generator(tmp_path).synthesise(trial.cell.evaluation.per_class)
    again = score_probe(x, y, data.x_test, data.y_test, trial.cell.evaluation.probe_c)
    # plain accuracy knows the released labels too
    again.pop("accuracy")
    scores = judgement_of(trial, outcome.state, data).scores
    assert again == {name: scores[name] for name in again}


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
    assert caught.value.where == f"synthesis {synthesis}"


def test_what_is_saved_holds_no_optimiser_no_encoder_of_a_client_and_no_iterate_beside_its_mean(tmp_path):
    _, _, outcome = saved(tmp_path, quick("fedhypevae", average_from=0.5))
    names = outcome.state.keys()
    assert not [name for name in names if "adam" in name or "encoder" in name]
    means = [name.removeprefix("server.tensors.average.") for name in names if name.startswith("server.tensors.average.")]
    assert means
    assert not [name for name in means if f"server.model.{name}" in names]
    assert "codes.code.weight" in names


def test_without_noise_on_the_codes_they_are_not_in_the_file(tmp_path):
    _, _, outcome = saved(tmp_path, quick("fedhypevae", noised="shared"))
    assert not [name for name in outcome.state if name.startswith("codes.")]


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


def test_a_run_keeps_a_generator_for_every_cell(bench):
    done = bench(small_grid("dp-gaussian", epsilon=[1.0, 4.0], resources={"clients_per_actor": "all"}))
    row = done.rows[0]
    loaded = fedsim.load(done.folder).generator(row.cell_id[:10])
    assert [getattr(loaded.facts.row, name) for name in PUBLIC_COLUMNS] == [getattr(row, name) for name in PUBLIC_COLUMNS]
    assert loaded.facts.sha256 == row.generator
    assert loaded.vouched
    assert loaded.manifest(5)["vouched"] == "by the results of its run"
    with pytest.raises(UserError, match=r"there are several generators .*; name one with `cell`"):
        load_generator(done.folder)
    with pytest.raises(UserError, match="there is no generator of this cell"):
        load_generator(done.folder, "no such")


def test_a_training_whose_tensors_were_not_kept_has_no_generator(tmp_path):
    prepared = small_cells("dp-gaussian")
    ResultStore(tmp_path).append("trainings", [training_line(trial, ran(prepared, trial)[0], {}) for trial in prepared.trials])
    with pytest.raises(UserError, match="there are no generators here"):
        load_generator(tmp_path)


def test_a_training_that_was_judged_twice_has_one_generator_under_both_ids(tmp_path):
    trials = [saved(tmp_path, "dp-gaussian")[0], small_cells("dp-gaussian", epsilon=4.0, evaluation={"per_class": 5}).trials[0]]
    ResultStore(tmp_path).append("judgements", [judgement_line(trial, RowError(**ERROR), 1.0) for trial in trials])
    first, second = (load_generator(tmp_path, trial.cell.cell_id) for trial in trials)
    assert first.facts.cell.cell_id != second.facts.cell.cell_id
    assert first.facts.sha256 == second.facts.sha256


# --- what may leave the simulation ---


def test_a_released_package_gives_the_rows_of_the_run_and_says_what_was_paid(package, released):
    path, cell = released(package, "dp-gaussian")
    run, alone = load_generator(package.with_name("run")), load_generator(package)
    assert sorted(package.iterdir()) == [path, path.with_suffix(".safetensors")]
    np.testing.assert_array_equal(run.synthesise(5)[0], alone.synthesise(5)[0])
    given, own = run.manifest(5), alone.manifest(5)
    assert (own.pop("vouched"), given.pop("vouched")) == ("by nothing: no results were with it", "by the results of its run")
    assert own == given
    assert (own["release"], own["claim"], own["delta"]) == ("under its epsilon", "proved", cell.delta)


def test_a_package_holds_no_exact_function_of_private_data(package, released):
    path, cell = released(package, "dp-gaussian")
    manifests = [load_generator(each).manifest(5) for each in (package, package.with_name("run"))]
    text = path.name + path.read_text() + dump(manifests)
    for private in (cell.cell_id, cell.training_id, cell.dataset_hash):
        assert private
        assert private not in text


def stated(folder):
    """A run of a plug-in that states a theorem; of its training the line of a check."""
    trial, *_ = saved(folder, {"name": "broken.noise:Strength", "params": {"strength": 0.0, "rounds": 3}}, **SECRET)
    cell = trial.cell
    return {"source": cell.source, "unit": cell.unit, "trust": cell.trust, "params": cell.params, "full": True, "ended": "passed"}


HELD_BACK = {
    "seeded noise": (("dp-gaussian",), {}, "with it anyone can take the noise off"),
    "no noise": (("dp-gaussian",), {**SECRET, "epsilon": math.inf}, "it carries no noise"),
    "no privacy": (("fedavg-cvae",), {}, "it carries no noise"),
    "heuristic": (("fedhypevae", {"noised": "shared"}), SECRET, "its status is ok, its claim heuristic"),
}


@pytest.mark.parametrize("name", HELD_BACK)
def test_what_its_epsilon_does_not_cover_is_not_released(tmp_path, package, name):
    (method, *params), keys, why = HELD_BACK[name]
    saved(tmp_path, quick(method, **(params[0] if params else {})), **keys)
    with pytest.raises(UserError, match=f"may not be released: .*{why}"):
        release(tmp_path, None, package)
    assert not package.exists()


def test_what_a_plug_in_states_is_released_once_a_full_check_of_the_run_folder_passed(tmp_path, package):
    line = stated(tmp_path)
    with pytest.raises(UserError, match="its claim stated, its check none"):
        release(tmp_path, None, package, trust_plugin=True)
    ResultStore(tmp_path).append("checks", [line])
    with pytest.raises(UserError, match="give `trust_plugin=True` if you trust that code"):
        release(tmp_path, None, package)
    assert not package.exists()
    row = release(tmp_path, None, package, trust_plugin=True)[1].row
    assert (row.claim, row.check) == ("stated", "passed")
    ResultStore(tmp_path).append("checks", [line | {"ended": "failed", "full": False}])
    with pytest.raises(UserError, match="its claim stated, its check failed"):
        release(tmp_path, None, package, trust_plugin=True)


@pytest.mark.parametrize("judging", ["none", "failed"])
def test_what_an_audit_refuted_is_not_released_whether_it_was_judged_or_not(tmp_path, package, judging):
    trial, *_ = saved(tmp_path, "dp-gaussian", **SECRET)
    cell, store = trial.cell, ResultStore(tmp_path)
    listed = {"cell_id": cell.cell_id, "training_id": cell.training_id, "label": cell.label, "audit": "key"}
    (tmp_path / "manifest.json").write_text(json.dumps({"cells": [listed]}))
    facts = {"epsilon_lower": 9.0, "pairs": 100, "canary_ratio": 1.0, "params": {}}
    store.append("audits", [{"audit": "key", "claim": "", "refuted": True, **facts}])
    if judging == "failed":
        store.append("judgements", [judgement_line(trial, RowError(**ERROR), 1.0)])
    with pytest.raises(UserError, match="may not be released: its status is refuted"):
        release(tmp_path, None, package)
    assert load_generator(tmp_path).manifest(5)["release"] == "simulation only"


ENDS = {
    "unaccounted": ({"unaccounted": "2 of 3 steps"}, "its status is unaccounted"),
    "overspent": ({"epsilon_spent": 4.5}, "its status is overspent"),
}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("judging", ["none", "failed"])
def test_what_was_not_spent_as_planned_is_not_released_whether_it_was_judged_or_not(tmp_path, package, name, judging):
    fields, why = ENDS[name]
    trial, *_ = saved(tmp_path, "dp-gaussian", lambda outcome: replace(outcome, **fields), **SECRET)
    if judging == "failed":
        ResultStore(tmp_path).append("judgements", [judgement_line(trial, RowError(**ERROR), 1.0)])
    with pytest.raises(UserError, match=why):
        release(tmp_path, None, package)
    assert not package.exists()


ENDS = {
    "unaccounted": ({"unaccounted": "2 of 3 steps"}, "its status is unaccounted"),
    "overspent": ({"epsilon_spent": 4.5}, "its status is overspent"),
}


def test_a_failed_judgement_alone_holds_nothing_back(tmp_path, package):
    trial, *_ = saved(tmp_path, "dp-gaussian", **SECRET)
    ResultStore(tmp_path).append("judgements", [judgement_line(trial, RowError(**ERROR), 1.0)])
    release(tmp_path, None, package)
    assert load_generator(package).facts.row.status == "ok"


def test_a_package_is_written_and_drawn_from_by_commands(tmp_path, package, command, bench):
    run = bench(small_grid("dp-gaussian", epsilon=4.0, **SECRET)).folder
    done = command("release", str(run), "--out", str(package))
    assert done.returncode == 0, done.stderr
    assert "dp-gaussian, ε = 4 at δ = 0.0001, claim proved" in " ".join(done.stdout.split())
    done = command("synth", str(package), "--out", str(tmp_path / "s.npz"))
    assert done.returncode == 0, done.stderr
    assert "no results of a run are here to vouch for it" in " ".join(done.stdout.split())


# --- files that are not what was written ---


def test_a_damaged_file_is_named_and_nothing_is_unpickled(tmp_path, package, released):
    trial, _, _ = saved(tmp_path, "dp-gaussian")
    RunFolder(tmp_path).state(trial.cell.training_id).write_bytes(b"\x80\x04cos\nsystem\n")
    path, _ = released(package, "dp-gaussian")
    path.with_suffix(".safetensors").write_bytes(b"\x80\x04cos\nsystem\n")
    for folder in (tmp_path, package):
        with pytest.raises(UserError, match=r"is not what was saved \(its SHA-256 .*; run the cell again in a new folder"):
            load_generator(folder)


def test_tensors_of_another_training_are_refused(tmp_path):
    trainings = [saved(tmp_path, "dp-gaussian", seeds=seed)[0].cell for seed in (0, 1)]
    one, other = (RunFolder(tmp_path).state(cell.training_id) for cell in trainings)
    one.replace(other)
    for cell in trainings:
        with pytest.raises(UserError, match="is not what was saved"):
            load_generator(tmp_path, cell.cell_id)


def put(*path_and_value):
    *path, last, value = path_and_value

    def change(facts):
        for key in path:
            facts = facts[key]
        facts[last] = value

    return change


def changed(path, change):
    """Change a file with one JSON object."""
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told) + "\n")


@pytest.mark.parametrize("text", ["", "null", "{}", "\x00"])
def test_what_is_no_json_of_a_generator_is_told_in_one_line(package, text, released):
    path, _ = released(package, "dp-gaussian")
    path.write_text(text)
    with pytest.raises(UserError, match="cannot be read") as caught:
        load_generator(package)
    assert "\n" not in str(caught.value)


def test_of_a_run_whose_line_contradicts_its_plan_nothing_is_released(folder, package):
    saved(folder / "run", "dp-gaussian", **SECRET)
    changed(folder / "run" / "trainings.jsonl", put("ledger", "epsilon_spent", 0.01))
    with pytest.raises(UserError, match=r"is not proved: ε is 0\.003 of what its mechanisms spend"):
        fedsim.load(folder / "run").release(package)
    assert not package.exists()


def test_a_delta_that_would_publish_a_row_is_told_with_every_draw_proof_and_statement(tmp_path, command, bench):
    run = str(bench(small_grid("dp-gaussian", epsilon=4.0, delta=0.01)).folder)
    for arguments in (("synth", run, "--out", str(tmp_path / "s.npz")), ("verify", run), ("statement", run)):
        done = command(*arguments)
        assert done.returncode == 0, done.stderr
        assert "δ = 0.01 is not below 1/n = 0.005 for the 200 training rows" in " ".join(done.stdout.split())


EVIL = """
from pathlib import Path
Path("evil ran").touch()
from baselines.dp_gaussian import DPGaussian as X
"""


@pytest.fixture
def evil(folder, released):
    """A run folder and a package, and beside them a plug-in that looks installed; returns a function that names an algorithm in both."""
    released(folder / "package", "dp-gaussian")
    (folder / "evil.py").write_text(EVIL)
    (folder / "evil.egg-info").mkdir()
    (folder / "evil.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
    (folder / "evil.egg-info" / "top_level.txt").write_text("evil\n")
    (folder / "evil.egg-info" / "entry_points.txt").write_text("[fedsim.algorithms]\nevil = evil:X\n")

    def name(algorithm):
        changed(folder / "run" / "trainings.jsonl", put("cell", "algorithm", algorithm))
        changed(next((folder / "package").glob("*.json")), put("cell", "algorithm", algorithm))

    return name


RUNS_CODE = {
    "synth of a run": ("synth", "run", "--out", "s.npz"),
    "synth of a package": ("synth", "package", "--out", "s.npz"),
    "release": ("release", "run", "--out", "again"),
}


@pytest.mark.parametrize(
    ("name", "arguments"), [("evil.py:X", "release"), ("evil:X", "synth of a run"), ("evil.py:X", "synth of a package")]
)
def test_a_generator_runs_no_code_that_nobody_installed(folder, command, evil, name, arguments):
    evil(name)
    done = command(*RUNS_CODE[arguments])
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "give --trust-plugin if you trust that code" in done.stderr
    assert not (folder / "evil ran").exists()


@pytest.mark.parametrize("arguments", RUNS_CODE)
def test_a_registered_name_is_not_what_a_working_folder_says(folder, command, evil, arguments):
    evil("evil")
    assert command(*RUNS_CODE[arguments]).returncode == 2
    assert not (folder / "evil ran").exists()


def test_a_trusted_plug_in_runs(folder, command, evil):
    evil("evil.py:X")
    done = command(*RUNS_CODE["synth of a package"], "--trust-plugin")
    assert done.returncode == 0, done.stderr
    assert (folder / "evil ran").exists()


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
