import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from cells import quick, score_probe, small_cells, small_grid
from rows import ERROR, kept

import fedsim
from fedsim.errors import UserError
from fedsim.evaluation.evaluate import evaluate_cell
from fedsim.json_lines import dump
from fedsim.results.generators import PUBLIC_COLUMNS, load_generator
from fedsim.results.join import claim_of
from fedsim.results.lines import RowError, evaluation_line
from fedsim.results.store import ResultStore, RunFolder
from fedsim.training.trial import Outcome, run_trial

SECRET = {"privacy": {"noise": "secret"}}


def saved(folder, entry, change=lambda outcome: outcome, **keys):
    """Train one small cell and keep what it left in a run folder; the prepared cell, its data and
    its outcome.
    """
    prepared = small_cells(entry, **{"epsilon": 4.0, **keys})
    (trial,), (data,) = prepared.trials, prepared.data.values()
    *_, outcome = run_trial(trial, data)
    assert isinstance(outcome, Outcome)
    kept(folder, trial, change(outcome), ("zero",))
    (folder / "manifest.json").write_text("{}")
    return trial, data, outcome


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the run of one small cell and its package, and the cell."""
    home = tmp_path_factory.mktemp("released")
    trial, *_ = saved(home / "run", "dp-gaussian", **SECRET)
    load_generator(home / "run").release(home / "package")
    return home, trial.cell


@pytest.fixture
def package(tmp_path):
    """Where a package goes."""
    return tmp_path / "package"


@pytest.fixture
def released(package, home):
    """The package of one small cell, with its run in the folder ``run`` beside: its JSON file, and
    the cell.
    """
    folder, cell = home
    shutil.copytree(folder, package.parent, dirs_exist_ok=True)
    return next(package.glob("*.json")), cell


@pytest.mark.parametrize("name", ["fedhypevae", "dp-gaussian"])
def test_a_saved_generator_gives_the_rows_that_its_cell_was_scored_on(tmp_path, name):
    trial, data, outcome = saved(tmp_path, name, evaluation={"per_class": 10, "probe_c": 0.5})
    x, y = load_generator(tmp_path).synthesise(trial.cell.evaluation.per_class)
    again = score_probe(x, y, data.x_test, data.y_test, trial.cell.evaluation.probe_c)
    again.pop("accuracy")  # which knows the released labels too
    scores = evaluate_cell(trial, outcome.state, data).scores
    assert again == {name: scores[name] for name in again}


def test_neutral_mixture_and_client_differ_and_draws_follow_the_seed(tmp_path):
    saved(tmp_path, "fedhypevae")
    labels = np.arange(10)
    made = [
        load_generator(tmp_path, synthesis=way).sample(labels)
        for way in ("neutral", "mixture", "client:0", "client:3")
    ]
    assert len({x.tobytes() for x in made}) == 4
    np.testing.assert_array_equal(load_generator(tmp_path).sample(labels), made[0])
    assert not np.array_equal(load_generator(tmp_path).sample(labels, seed=1), made[0])
    for synthesis, message in {
        "client:4": "there are 4 clients; give client:0 .. client:3",
        "client:x": "is not one of fedhypevae's; give neutral, mixture, client:0, or leave it out",
        "average": "is not one of",
    }.items():
        with pytest.raises(UserError, match=f"synthesis {synthesis}: {message}"):
            load_generator(tmp_path, synthesis=synthesis)


def test_a_clients_code_and_encoder_are_in_no_file_unless_they_were_released(tmp_path):
    *_, outcome = saved(tmp_path, quick("fedhypevae", noised="shared", rounds=4))
    assert not [
        name
        for name in outcome.state
        if name.startswith("codes.") or "adam" in name or "encoder" in name
    ]
    with pytest.raises(
        UserError,
        match="under noised: shared the client codes carry no noise, so they never left their "
        "clients",
    ):
        load_generator(tmp_path, synthesis="client:1")
    load_generator(tmp_path, synthesis="mixture")


def test_the_manifest_carries_what_was_paid(tmp_path):
    *_, outcome = saved(tmp_path, "dp-gaussian")
    generator = load_generator(tmp_path)
    manifest = generator.manifest(per_class=7)
    told = {
        "epsilon": outcome.epsilon_spent,
        "epsilon_target": 4.0,
        "delta": 1e-4,
        "unit": "example",
        "trust": "aggregate",
    }
    told["claim"] = "proved"
    assert {key: manifest[key] for key in told} == told
    json.dumps(manifest, allow_nan=False)
    for labels in ([10], [-1], [0.5], [[0]]):
        with pytest.raises(UserError, match=r"give labels 0 .. 9"):
            generator.sample(labels)
    with pytest.raises(UserError, match="dp-gaussian has one generator for all clients"):
        load_generator(tmp_path, synthesis="client:0")
    with pytest.raises(UserError, match="-1 is no seed"):
        generator.sample([0], seed=-1)


def test_a_run_keeps_a_generator_for_every_cell(bench):
    done = bench(
        small_grid("dp-gaussian", epsilon=[1.0, 4.0], resources={"clients_per_actor": "all"})
    )
    row = done.rows[0]
    loaded = fedsim.load(done.folder).generator(row.cell_id[:10])
    assert [getattr(loaded.facts.row, name) for name in PUBLIC_COLUMNS] == [
        getattr(row, name) for name in PUBLIC_COLUMNS
    ]
    assert (loaded.facts.sha256, loaded.vouched) == (row.generator, True)
    with pytest.raises(UserError, match=r"there are several generators; .*; name one with `cell`"):
        load_generator(done.folder)
    with pytest.raises(
        UserError,
        match=r"run: none of its generators may be released: the seed of its noise is known.* "
        r"\(2 of 2\); run the grid with privacy",
    ):
        fedsim.load(done.folder).release(done.folder / "package")
    with pytest.raises(UserError, match="there is no generator of cell no such"):
        load_generator(done.folder, "no such")


# --- what may leave the simulation ---


def test_a_released_package_gives_the_rows_of_the_run_and_holds_no_exact_function_of_private_data(
    package, released
):
    path, cell = released
    run = load_generator(package.with_name("run"))
    alone = load_generator(package)
    assert sorted(package.iterdir()) == [path, path.with_suffix(".safetensors")]
    np.testing.assert_array_equal(run.synthesise(5)[0], alone.synthesise(5)[0])
    given = run.manifest(5)
    own = alone.manifest(5)
    text = path.name + path.read_text() + dump([given, own])
    for private in (cell.cell_id, cell.training_id, cell.dataset_hash):
        assert private
        assert private not in text
    assert (own.pop("vouched"), given.pop("vouched")) == (
        "by nothing: no results were with it",
        "by the results of its run",
    )
    assert own == given
    assert (own["release"], own["claim"], own["delta"]) == (
        "under its epsilon",
        "proved",
        cell.delta,
    )


@pytest.mark.parametrize(
    ("entry", "keys", "why"),
    [
        ("dp-gaussian", {}, "so anyone can subtract the noise"),
        ("dp-gaussian", {**SECRET, "epsilon": math.inf}, "it carries no noise"),
        ("fedavg-cvae", {}, "it carries no noise"),
        (quick("fedhypevae", noised="shared"), SECRET, "its status is ok, its claim heuristic"),
    ],
)
def test_what_its_epsilon_does_not_cover_is_not_released(tmp_path, package, entry, keys, why):
    saved(tmp_path, entry, **keys)
    with pytest.raises(UserError, match=f"may not be released: .*{why}"):
        load_generator(tmp_path).release(package)
    assert not package.exists()


def test_what_a_plug_in_states_is_released_once_a_full_check_of_the_run_folder_passed(
    tmp_path, package
):
    trial, *_ = saved(
        tmp_path,
        {"name": "broken.noise:Strength", "params": {"strength": 0.0, "rounds": 3}},
        **SECRET,
    )
    line = {name: getattr(trial.cell, name) for name in ("source", "unit", "trust", "params")} | {
        "tried": trial.cell.params,
        "full": True,
        "ended": "passed",
    }
    with pytest.raises(UserError, match="its claim stated, its check none"):
        load_generator(tmp_path, trust_plugin=True).release(package)
    ResultStore(tmp_path).append("checks", [line])
    with pytest.raises(UserError, match="give `trust_plugin=True` if you trust that code"):
        load_generator(tmp_path)
    load_generator(tmp_path, trust_plugin=True).release(package)
    assert load_generator(package, trust_plugin=True).facts.row.check == "passed"
    ResultStore(tmp_path).append("checks", [line | {"ended": "failed", "full": False}])
    with pytest.raises(UserError, match="its claim stated, its check failed"):
        load_generator(tmp_path, trust_plugin=True).release(package)


@pytest.mark.parametrize("evaluation", ["none", "failed"])
@pytest.mark.parametrize(
    ("status", "fields"),
    [
        ("unaccounted", {"unaccounted": "2 steps"}),
        ("overspent", {"epsilon_spent": 4.5}),
        ("refuted", {}),
    ],
)
def test_what_was_refuted_or_not_spent_as_planned_is_not_released_whether_it_was_evaluated_or_not(
    tmp_path, package, status, fields, evaluation
):
    trial, *_ = saved(tmp_path, "dp-gaussian", lambda outcome: replace(outcome, **fields), **SECRET)
    store = ResultStore(tmp_path)
    bounds = dict.fromkeys(("epsilon_lower", "pairs", "canary_ratio", "params"), 9)
    if status == "refuted":
        store.append(
            "audits",
            [
                {
                    "audit": "key",
                    "claim": claim_of(trial.cell.model_dump(mode="json")),
                    "refuted": True,
                    **bounds,
                }
            ],
        )
    if evaluation == "failed":
        store.append("evaluations", [evaluation_line(trial, RowError(**ERROR), 1.0)])
    with pytest.raises(UserError, match=f"may not be released: its status is {status}"):
        load_generator(tmp_path).release(package)
    assert not package.exists()


def test_a_failed_evaluation_alone_holds_nothing_back(package, released):
    run = package.with_name("run")
    (training,) = ResultStore(run).last("trainings").values()
    failed = {
        "cell_id": training["cell"]["cell_id"],
        "training_id": training["training_id"],
        "error": ERROR,
    }
    ResultStore(run).append("evaluations", [failed])
    assert load_generator(run).facts.held_back == ""


def test_a_package_is_written_and_drawn_from_by_commands(tmp_path, package, released, command):
    done = command("release", str(package.with_name("run")), "--out", str(tmp_path / "again"))
    assert done.returncode == 0, done.stderr
    assert "dp-gaussian, ε = 4 at δ = 0.0001, claim proved" in " ".join(done.stdout.split())
    assert "that of real rows of L2 norm 1; no synthetic row is longer than 1.2" in done.stdout
    done = command("synth", str(tmp_path / "again"), "--out", str(tmp_path / "s.npz"))
    assert done.returncode == 0, done.stderr
    assert "that of real rows of L2 norm 1; no synthetic row is longer than 1.2" in done.stdout
    assert json.loads((tmp_path / "s.json").read_text())["scale"] in done.stdout
    assert "unverified: the package states these facts" in done.stdout
    for arguments in (["--seed", "-1"], ["--seed", str(2**64)], ["--per-class", "0"]):
        done = command("synth", str(package), "--out", str(tmp_path / "s.npz"), *arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)


# --- files that are not what was written ---


def test_files_that_are_not_what_was_written_are_named_and_nothing_is_unpickled(package, released):
    path, cell = released
    run = package.with_name("run")
    for folder, tensors in (
        (run, RunFolder(run).state(cell.training_id)),
        (package, path.with_suffix(".safetensors")),
    ):
        tensors.write_bytes(b"\x80\x04cos\nsystem\n")
        with pytest.raises(UserError, match=r"cannot be read \(its SHA-256 .*; restore it"):
            load_generator(folder)
    for text in ("", "null", "{}", "\x00"):
        path.write_text(text)
        with pytest.raises(UserError, match="cannot be read") as caught:
            load_generator(package)
        assert "\n" not in str(caught.value)


def changed(path, change):
    """Change a file with one JSON object."""
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told) + "\n")


def test_of_a_run_whose_line_contradicts_its_plan_nothing_is_released(tmp_path, package, released):
    changed(
        tmp_path / "run" / "trainings.jsonl", lambda line: line["ledger"].update(epsilon_spent=0.01)
    )
    with pytest.raises(UserError, match=r"is not proved: ε is 0\.003 of what its mechanisms spend"):
        fedsim.load(tmp_path / "run").release(tmp_path / "again")
    assert not (tmp_path / "again").exists()


EVIL = (
    'from pathlib import Path\nPath("evil ran").touch()\nfrom baselines.dp_gaussian import '
    "DPGaussian as X\n"
)


@pytest.fixture
def evil(folder, home):
    """A run folder and a package, and beside them a plug-in that looks installed; returns a
    function that names an algorithm in both.
    """
    shutil.copytree(home[0], folder, dirs_exist_ok=True)
    (folder / "evil.py").write_text(EVIL)
    (folder / "evil.egg-info").mkdir()
    (folder / "evil.egg-info" / "PKG-INFO").write_text(
        "Metadata-Version: 2.1\nName: evil\nVersion: 1\n"
    )
    (folder / "evil.egg-info" / "top_level.txt").write_text("evil\n")
    (folder / "evil.egg-info" / "entry_points.txt").write_text(
        "[fedsim.algorithms]\nevil = evil:X\n"
    )

    def name(algorithm):
        for path in (folder / "run" / "trainings.jsonl", next((folder / "package").glob("*.json"))):
            changed(path, lambda told: told["cell"].update(algorithm=algorithm))

    return name


@pytest.mark.parametrize("name", ["evil.py:X", "evil:X", "evil"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("synth", "run", "--out", "s.npz"),
        ("synth", "package", "--out", "s.npz"),
        ("release", "run", "--out", "a"),
    ],
)
def test_a_generator_runs_no_code_that_nobody_installed_or_trusts(
    folder, command, evil, name, arguments
):
    evil(name)
    done = command(*arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert ("give --trust-plugin if you trust that code" in done.stderr) == (name != "evil")
    assert not (folder / "evil ran").exists()
    if name == "evil.py:X" and "package" in arguments:
        done = command(*arguments, "--trust-plugin")
        assert done.returncode == 0, done.stderr
        assert (folder / "evil ran").exists()
