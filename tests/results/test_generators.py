"""Saved generators: what they sample, what may leave a simulation, and damaged files."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benches import Done, Ran, assert_refused
from cells import quick, score_probe, small_cells, small_grid
from rows import ERROR, kept

import fedsim
from fedsim.data.embeddings import Embeddings
from fedsim.errors import UserError
from fedsim.evaluation.evaluate import evaluate_cell
from fedsim.grid.models import Cell
from fedsim.json_lines import dump
from fedsim.results.generators import PUBLIC_COLUMNS, load_generator
from fedsim.results.join import claim_of
from fedsim.results.lines import RowError, evaluation_line
from fedsim.results.store import ResultStore, RunFolder
from fedsim.training.trial import Outcome, Trial, run_trial

Command = Callable[..., Done]
SECRET = {"privacy": {"noise": "secret"}}
PLUGIN = {"name": "broken.noise:Strength", "params": {"strength": 0.0, "rounds": 3}}
"""A method whose claim is stated, which a check passes."""
SCALE = "that of real embeddings of L2 norm 1; no synthetic embedding is longer than 1.2"


def save(
    folder: Path, entry: Any, outcome: dict[str, Any] | None = None, **keys: Any
) -> tuple[Trial, Embeddings, Outcome]:
    """Train one small cell and keep it in a run folder.

    Args:
        folder: The run folder.
        entry: The method, as in a grid.
        outcome: Parts of the training's outcome that are recorded with other values.
        **keys: Further keys of the grid.

    Returns:
        The cell, its data, and its true outcome.
    """
    prepared = small_cells(entry, **{"epsilon": 4.0, **keys})
    (trial,) = prepared.trials
    (data,) = prepared.data.values()
    *_, ended = run_trial(trial, data)
    assert isinstance(ended, Outcome)
    kept(
        folder,
        trial,
        replace(ended, **(outcome or {})),
        ("zero",),
    )
    (folder / "manifest.json").write_text("{}")
    return trial, data, ended


def assert_not_released(folder: Path, message: str) -> None:
    """Assert that a run's generator is not released, and that nothing is written."""
    with pytest.raises(UserError, match=f"may not be released: .*{message}"):
        load_generator(folder, trust_plugin=True).release(folder / "not released")
    assert not (folder / "not released").exists()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cell]:
    """A folder with the ``run`` of one small cell and its ``package``, and the cell."""
    folder = tmp_path_factory.mktemp("original")
    trial, *_ = save(folder / "run", "dp-gaussian", **SECRET)
    load_generator(folder / "run").release(folder / "package")
    return folder, trial.cell


@pytest.fixture
def run(folder: Path, original: tuple[Path, Cell]) -> Path:
    """A copy of the run, which a test may change."""
    return Path(shutil.copytree(original[0] / "run", folder / "run"))


@pytest.fixture
def package(folder: Path, original: tuple[Path, Cell]) -> Path:
    """A copy of the package, which a test may change."""
    return Path(shutil.copytree(original[0] / "package", folder / "package"))


def facts_of(package: Path) -> Path:
    """Return the JSON file of a package."""
    (path,) = package.glob("*.json")
    return path


# --- samples ---


@pytest.mark.parametrize("name", ["fedhypevae", "dp-gaussian"])
def test_saved_generator_gives_the_samples_that_were_scored(tmp_path: Path, name: str) -> None:
    trial, data, outcome = save(
        tmp_path,
        name,
        evaluation={"per_class": 10, "probe_c": 0.5},
    )
    x, y = load_generator(tmp_path).synthesise(trial.cell.evaluation.per_class)
    again: Any = score_probe(
        x,
        y,
        data.x_test,
        data.y_test,
        trial.cell.evaluation.probe_c,
    )
    scores: Any = evaluate_cell(trial, outcome.state, data).scores
    del again["accuracy"]  # which depends on the released counts of labels, too
    assert again == {name: scores[name] for name in again}


def test_ways_to_synthesise_differ_and_draws_follow_the_seed(tmp_path: Path) -> None:
    save(tmp_path, "fedhypevae")
    labels = np.arange(10)
    ways = ("neutral", "mixture", "client:0", "client:3")
    drawn = [load_generator(tmp_path, synthesis=way).sample(labels) for way in ways]
    assert len({x.tobytes() for x in drawn}) == 4
    np.testing.assert_array_equal(load_generator(tmp_path).sample(labels), drawn[0])
    assert not np.array_equal(load_generator(tmp_path).sample(labels, seed=1), drawn[0])
    for synthesis, message in {
        "client:4": "there are 4 clients; give client:0 .. client:3",
        "client:x": "fedhypevae cannot draw in this way; give neutral or mixture or client:0, or",
        "average": "fedhypevae cannot draw in this way",
    }.items():
        with pytest.raises(UserError, match=f"synthesis {synthesis}: {message}"):
            load_generator(tmp_path, synthesis=synthesis)


def test_one_generator_for_all_is_not_asked_for_a_clients_own(tmp_path: Path) -> None:
    save(tmp_path, "dp-gaussian")
    message = "dp-gaussian cannot draw in this way; leave out `synthesis`$"
    with pytest.raises(UserError, match=message):
        load_generator(tmp_path, synthesis="mixture")


def test_client_codes_are_in_no_file_unless_released(tmp_path: Path) -> None:
    *_, outcome = save(
        tmp_path,
        quick(
            "fedhypevae",
            noised="shared",
            rounds=4,
        ),
    )
    for name in outcome.state:
        assert not name.startswith("codes.")
        assert "adam" not in name
        assert "encoder" not in name
    with pytest.raises(UserError, match="with noised: shared, which adds no noise to the codes"):
        load_generator(tmp_path, synthesis="client:1")
    load_generator(tmp_path, synthesis="mixture")


def test_trained_codes_of_clients_are_sampled_at_infinite_epsilon(tmp_path: Path) -> None:
    entry = quick("fedhypevae", noised="shared", rounds=4)
    *_, outcome = save(tmp_path, entry, epsilon=math.inf)
    assert "codes.code.weight" in outcome.state
    sample = load_generator(tmp_path, synthesis="client:1").sample([0, 1])
    assert sample.shape == (2, 64)


def test_manifest_states_the_privacy_budget(tmp_path: Path) -> None:
    *_, outcome = save(tmp_path, "dp-gaussian")
    manifest = load_generator(tmp_path).manifest(per_class=7)
    json.dumps(manifest, allow_nan=False)
    budget = {
        "epsilon": outcome.epsilon_spent,
        "epsilon_target": 4.0,
        "delta": 1e-4,
        "unit": "example",
        "trust": "aggregate",
        "claim": "proved",
    }
    assert manifest | budget == manifest


def test_wrong_labels_clients_and_seeds_are_refused(run: Path) -> None:
    generator = load_generator(run)
    for labels in ([10], [-1], [0.5], [[0]]):
        with pytest.raises(UserError, match=r"give labels 0 .. 9"):
            generator.sample(labels)
    with pytest.raises(UserError, match="-1 is not allowed"):
        generator.sample([0], seed=-1)
    with pytest.raises(UserError, match="dp-gaussian has one generator for all clients"):
        load_generator(run, synthesis="client:0")


def test_run_keeps_a_generator_for_every_cell(bench: Callable[..., Ran]) -> None:
    keys = {"epsilon": [1.0, 4.0], "resources": {"clients_per_actor": "all"}}
    done = bench(small_grid("dp-gaussian", **keys))
    row = done.rows[0]
    loaded = fedsim.load(done.folder).generator(row.cell_id[:10])
    for name in PUBLIC_COLUMNS:
        assert loaded.facts.row.values[name] == row.values[name]
    assert loaded.facts.sha256 == row.generator
    assert loaded.vouched
    with pytest.raises(
        UserError, match="holds 2 generators to choose from; choose one with `cell`"
    ):
        load_generator(done.folder)
    with pytest.raises(UserError, match="has a cell whose id begins with 'no such'"):
        load_generator(done.folder, "no such")
    message = "none of its generators may be released: 2 of 2: the seed of its noise is known"
    with pytest.raises(UserError, match=message):
        fedsim.load(done.folder).release(done.folder / "package")


# --- what may leave the simulation ---


def test_package_gives_the_samples_and_the_manifest_of_its_run(run: Path, package: Path) -> None:
    of_run = load_generator(run)
    alone = load_generator(package)
    np.testing.assert_array_equal(of_run.synthesise(5)[0], alone.synthesise(5)[0])
    manifest = alone.manifest(5)
    assert manifest["vouched"] == "by nothing: no results were with it"
    assert manifest["release"] == "under its epsilon"
    assert manifest["claim"] == "proved"
    assert of_run.manifest(5) == manifest | {"vouched": "by the results of its run"}


def test_package_holds_no_exact_function_of_private_data(
    original: tuple[Path, Cell], run: Path, package: Path
) -> None:
    facts = facts_of(package)
    assert set(package.iterdir()) == {facts, facts.with_suffix(".safetensors")}
    manifests = [load_generator(folder).manifest(5) for folder in (run, package)]
    text = facts.name + facts.read_text() + dump(manifests)
    cell = original[1]
    for private in (cell.cell_id, cell.training_id, cell.dataset_hash):
        assert private
        assert private not in text


@pytest.mark.parametrize(
    ("entry", "keys", "why"),
    [
        ("dp-gaussian", {}, "so anyone can subtract the noise"),
        ("dp-gaussian", {**SECRET, "epsilon": math.inf}, "because its epsilon is infinite"),
        ("fedavg-cvae", {}, "its method adds no noise"),
        (quick("fedhypevae", noised="shared"), SECRET, "its claim is heuristic"),
    ],
)
def test_generator_that_epsilon_does_not_cover_is_not_released(
    tmp_path: Path, entry: Any, keys: dict[str, Any], why: str
) -> None:
    save(tmp_path, entry, **keys)
    assert_not_released(tmp_path, why)


def test_generator_of_a_plug_in_is_released_after_a_full_check(tmp_path: Path) -> None:
    trial, *_ = save(tmp_path, PLUGIN, **SECRET)
    cell = trial.cell
    check = {
        "algorithm": cell.algorithm,
        "source": cell.source,
        "unit": cell.unit,
        "trust": cell.trust,
        "params": cell.params,
        "tried": cell.params,
    }
    store = ResultStore(tmp_path)
    assert_not_released(tmp_path, "its claim is stated and its check is missing")
    store.append("checks", [check | {"full": True, "ended": "passed"}])
    load_generator(tmp_path, trust_plugin=True).release(tmp_path / "package")
    released = load_generator(tmp_path / "package", trust_plugin=True)
    assert released.facts.row.check == "passed"
    store.append("checks", [check | {"full": False, "ended": "failed"}])
    assert_not_released(tmp_path, "its claim is stated and its check failed")


@pytest.mark.parametrize("evaluation", ["none", "failed"])
@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("unaccounted", {"unaccounted": "2 steps"}),
        ("overspent", {"epsilon_spent": 4.5}),
        ("refuted", {}),
    ],
)
def test_generator_whose_epsilon_does_not_hold_is_not_released(
    tmp_path: Path, status: str, outcome: dict[str, Any], evaluation: str
) -> None:
    trial, *_ = save(tmp_path, "dp-gaussian", outcome, **SECRET)
    store = ResultStore(tmp_path)
    if status == "refuted":
        bounds = dict.fromkeys(("epsilon_lower", "pairs", "canary_ratio", "params"), 9)
        claim = claim_of(trial.cell.model_dump(mode="json"))
        store.append(
            "audits",
            [
                {
                    "audit": "key",
                    "claim": claim,
                    "refuted": True,
                    **bounds,
                }
            ],
        )
    if evaluation == "failed":
        store.append(
            "evaluations",
            [
                evaluation_line(
                    trial,
                    RowError(**ERROR),
                    1.0,
                )
            ],
        )
    assert_not_released(tmp_path, f"its status is {status}")


def test_failed_evaluation_alone_holds_nothing_back(run: Path) -> None:
    store = ResultStore(run)
    (training,) = store.last("trainings").values()
    ids = {"cell_id": training["cell"]["cell_id"], "training_id": training["training_id"]}
    store.append("evaluations", [{**ids, "error": ERROR}])
    assert load_generator(run).facts.held_back == ""


def test_package_is_written_and_read_by_commands(folder: Path, run: Path, command: Command) -> None:
    done = command("release", "run", "package")
    assert done.returncode == 0, done.stderr
    assert "dp-gaussian, ε = 4 at δ = 0.0001, claim proved" in done.stdout
    assert SCALE in done.stdout
    done = command("synth", "package", "s.npz")
    assert done.returncode == 0, done.stderr
    assert SCALE in done.stdout
    assert json.loads((folder / "s.json").read_text())["scale"] == SCALE
    assert "unverified: the package states these facts" in done.stdout


@pytest.mark.parametrize(
    ("option", "value"), [("--seed", "-1"), ("--seed", str(2**64)), ("--per-class", "0")]
)
def test_synth_refuses_numbers_out_of_range(
    package: Path, command: Command, option: str, value: str
) -> None:
    assert_refused(
        command(
            "synth",
            "package",
            "s.npz",
            option,
            value,
        ),
        option,
    )


# --- files that are not what was written ---


def change_line(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a file with one JSON object."""
    line = json.loads(path.read_text())
    change(line)
    path.write_text(json.dumps(line) + "\n")


def test_changed_tensors_are_named_and_never_unpickled(
    original: tuple[Path, Cell], run: Path, package: Path
) -> None:
    tensors_of_run = RunFolder(run).state(original[1].training_id)
    tensors_of_package = facts_of(package).with_suffix(".safetensors")
    for folder, tensors in ((run, tensors_of_run), (package, tensors_of_package)):
        tensors.write_bytes(b"\x80\x04cos\nsystem\n")
        with pytest.raises(
            UserError, match=r"has changed since .* SHA-256 .*; copy the file from a backup"
        ):
            load_generator(folder)


@pytest.mark.parametrize("text", ["", "null", "{}", "\x00"])
def test_damaged_facts_are_named_in_one_line(package: Path, text: str) -> None:
    facts_of(package).write_text(text)
    with pytest.raises(UserError, match="cannot be read") as caught:
        load_generator(package)
    assert "\n" not in str(caught.value)


def test_run_whose_line_contradicts_its_plan_releases_nothing(run: Path) -> None:
    change_line(run / "trainings.jsonl", lambda line: line["ledger"].update(epsilon_spent=0.01))
    with pytest.raises(UserError, match=r"is not proved: ε is 0\.003 of what its mechanisms spend"):
        fedsim.load(run).release(run / "again")
    assert not (run / "again").exists()


EVIL = """
from pathlib import Path
Path("evil ran").touch()
from baselines.dp_gaussian import DPGaussian as X
"""
EVIL_PACKAGE = {
    "PKG-INFO": "Metadata-Version: 2.1\nName: evil\nVersion: 1\n",
    "top_level.txt": "evil\n",
    "entry_points.txt": "[fedsim.algorithms]\nevil = evil:X\n",
}


@pytest.fixture
def evil(run: Path, package: Path) -> Callable[[str], None]:
    """A plug-in that looks installed; call it to name the algorithm of the run and the package."""
    folder = run.parent
    (folder / "evil.py").write_text(EVIL)
    (folder / "evil.egg-info").mkdir()
    for name, text in EVIL_PACKAGE.items():
        (folder / "evil.egg-info" / name).write_text(text)

    def name_algorithm(algorithm: str) -> None:
        for path in (run / "trainings.jsonl", facts_of(package)):
            change_line(path, lambda line: line["cell"].update(algorithm=algorithm))

    return name_algorithm


@pytest.mark.parametrize("name", ["evil.py:X", "evil:X", "evil"])
@pytest.mark.parametrize("arguments", ["synth run s.npz", "synth package s.npz", "release run a"])
def test_code_that_nobody_installed_or_trusts_does_not_run(
    folder: Path, command: Command, evil: Callable[[str], None], name: str, arguments: str
) -> None:
    evil(name)
    done = command(*arguments.split())
    assert_refused(done, name)
    assert ("give --trust-plugin if you trust that code" in done.stderr) == (name != "evil")
    assert not (folder / "evil ran").exists()


def test_code_of_a_package_runs_if_it_is_trusted(
    folder: Path, command: Command, evil: Callable[[str], None]
) -> None:
    evil("evil.py:X")
    done = command("synth", "package", "s.npz", "--trust-plugin")
    assert done.returncode == 0, done.stderr
    assert (folder / "evil ran").exists()
