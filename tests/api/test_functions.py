"""Benches, lists, checks, audits, accounts and embeddings, as functions and as commands."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benches import PATIENCE, Done, Ran, assert_refused, interruptible
from cells import SHIPPED, SMALL, small_grid
from pictures import save_encoder, save_folder
from plug_ins import GOOD, changed, write
from sklearn.linear_model import LogisticRegression

import fedsim
from fedsim.api.describe import Catalogue, describe
from fedsim.data.sources.load import load
from fedsim.data.spec import DatasetSpec
from fedsim.errors import PluginError
from fedsim.grid.read import load_grid
from fedsim.plugins.registry import lookup
from fedsim.results.join import read_results
from fedsim.results.store import ResultStore

slow = pytest.mark.slow
BROKEN = Path(__file__).parents[1] / "broken"
FEDSIM = str(Path(sys.executable).with_name("fedsim"))
Command = Callable[..., Done]


def write_grid(folder: Path, *algorithms: Any, **keys: Any) -> None:
    """Write ``g.yaml``: a grid of short cells, by default of one method."""
    grid = {**SMALL, "algorithms": algorithms or ["dp-gaussian"], **keys}
    (folder / "g.yaml").write_text(json.dumps(grid))


def texts_in(folder: Path) -> dict[str, str]:
    """The files of a folder with their texts."""
    return {path.name: path.read_text() for path in folder.iterdir()}


# --- benches that are interrupted ---

FOUR_CELLS = """
algorithms:
  - {name: weight-noise, params: {rounds: 2, local_steps: 5}}
  - {name: fedhypevae, params: {rounds: 10}}
clients: [4]
epsilon: [4]
seeds: [0, 1]
evaluation: {per_class: 30, evaluators: []}
"""
LINES_IN_THE_END = {"trainings": 4, "evaluations": 4, "references": 3}
"""The files in which no line ever changes, and how many lines they have in the end."""


def lines_of(run: Path) -> dict[str, list[str]]:
    """The lines of a run folder's files in which no line ever changes."""
    lines = {}
    for name in LINES_IN_THE_END:
        path = run / f"{name}.jsonl"
        lines[name] = path.read_text().splitlines() if path.exists() else []
    return lines


@pytest.fixture
def started(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A bench as a terminal starts it, with a finished cell; it does not outlive the test."""
    (folder / "small.yaml").write_text(FOUR_CELLS)
    process = subprocess.Popen(
        [FEDSIM, "bench", "small.yaml", "--in-process"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        preexec_fn=interruptible,
    )
    while not lines_of(folder / "runs/small")["evaluations"]:
        assert process.poll() is None, process.communicate()
        os.sched_yield()
    yield process
    process.kill()
    process.wait()


def assert_bench_continues(folder: Path, command: Command) -> None:
    """Assert that the same command keeps all finished results and adds the missing ones."""
    before = lines_of(folder / "runs/small")
    done = command("bench", "small.yaml", "--in-process")
    assert done.returncode == 0, done.stdout + done.stderr
    after = lines_of(folder / "runs/small")
    for name, lines in before.items():
        assert after[name][: len(lines)] == lines
        assert len(after[name]) == LINES_IN_THE_END[name]


def test_interrupted_bench_continues_by_the_same_command(
    folder: Path, started: subprocess.Popen[str], command: Command
) -> None:
    os.killpg(started.pid, signal.SIGINT)
    out, err = started.communicate(timeout=PATIENCE)
    assert started.returncode == 130
    assert "interrupted: " in out
    assert err == ""
    assert_bench_continues(folder, command)


@slow
def test_killed_bench_continues_by_the_same_command(
    folder: Path, started: subprocess.Popen[str], command: Command
) -> None:
    os.killpg(started.pid, signal.SIGKILL)
    started.communicate(timeout=PATIENCE)
    assert_bench_continues(folder, command)


def test_interruption_is_raised_and_signals_are_heard_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)

    def interrupted(*args: object, **how: object) -> None:
        # The first signal leaves all signals ignored, for an orderly end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsim.runs.bench.Scheduler.run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fedsim.bench(
            SMALL,
            algorithms=["dp-gaussian"],
            out=folder / "run",
            in_process=True,
        )
    assert signal.getsignal(signal.SIGINT) is before


def test_bench_that_ended_before_its_manifest_continues(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_grid(folder)

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fedsim.runs.bench.write_manifest", interrupted)
        assert command("bench", "g.yaml", "--in-process").returncode == 130
    assert [path.name for path in (folder / "runs/g").iterdir()] == [".lock"]
    (folder / "runs/g/.manifest.json.4242.part").write_text('{"format')
    assert command("bench", "g.yaml", "--in-process").returncode == 0
    assert (folder / "runs/g/report.html").exists()


# --- grids ---


def test_path_and_mapping_are_the_same_grid(folder: Path) -> None:
    keys = {"algorithms": ["dp-gaussian"], "clients": 4, "evaluation": {"per_class": 10}}
    changes = {"evaluation.probe_c": 1.0, "epsilon": [1, float("inf")]}
    (folder / "g.yaml").write_text(json.dumps(keys))
    of_file = load_grid("g.yaml", changes, ["dp-linear"])
    assert of_file == load_grid({"name": "g", **keys}, changes, ["dp-linear"])


def test_path_of_a_plug_in_is_relative_to_its_grid(folder: Path) -> None:
    (folder / "grids").mkdir()
    (folder / "beside_grid.py").write_text(GOOD)
    (folder / "grids/in_grids.py").write_text(GOOD)
    write_grid(
        folder / "grids",
        "in_grids.py:MyMethod",
        "../beside_grid.py:MyMethod",
    )
    first, second = load_grid(folder / "grids/g.yaml").algorithms
    assert first.name == "grids/in_grids.py:MyMethod"
    assert first.display == "in_grids.py:MyMethod"
    assert second.name == "beside_grid.py:MyMethod"
    assert second.display == "../beside_grid.py:MyMethod"


def test_arrays_and_ranges_of_python_are_axes_of_a_grid(folder: Path) -> None:
    given = {
        "algorithms": [{"name": "fedhypevae", "params": {"rounds": np.int64(3)}}],
        "alpha": np.array([0.1, 1.0]),
        "clients": np.int64(4),
        "seeds": range(3),
        "scan": {"latent": np.arange(2, 4)},
    }
    listed = {
        "algorithms": [{"name": "fedhypevae", "params": {"rounds": 3}}],
        "alpha": [0.1, 1.0],
        "clients": 4,
        "seeds": [0, 1, 2],
        "scan": {"latent": [2, 3]},
    }
    assert load_grid(given, {"epsilon": np.array([1, 4])}) == load_grid(listed, {"epsilon": [1, 4]})


MANY_CELLS = "algorithms: ['nobody:Knows']\nseeds: 0-999\nepsilon: [1, 2, 4]\nalpha: [1, 2]\n"


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ("algorithms: [fedhypevae]\nepsilonn: [1]\n", "g.yaml:2: "),
        ("algorithms: [fedhypevae]\nepsilonn: [1]\n", "did you mean 'epsilon'"),
        ("algorithms: [fedhypevae]\nclients: [100000]\n", "clients[0]"),
        ("algorithms: ['leave.py:X']\n", "algorithms[0]"),
        ("algorithms: ['leave.py:X']\n", "SystemExit: 3"),
        (MANY_CELLS, "has up to 6,000 cells; give fewer values, or --yes to run more than 5,000"),
    ],
)
def test_mistake_in_a_grid_is_one_line_and_writes_nothing(
    folder: Path, command: Command, grid: str, words: str
) -> None:
    (folder / "g.yaml").write_text(grid)
    (folder / "leave.py").write_text("import sys\nsys.exit(3)\n")
    assert_refused(command("bench", "--grid", "g.yaml"), words)
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {"g.yaml", "leave.py"}


def test_grid_of_many_cells_is_resolved_once_it_is_confirmed(
    folder: Path, command: Command
) -> None:
    (folder / "g.yaml").write_text(MANY_CELLS)
    done = command("bench", "g.yaml", "--dry-run", "--yes")
    assert "'nobody:Knows' cannot be imported" in done.stderr


# --- folders that a bench may not use ---

USERS_FILES = {"report.html": "<p>mine</p>", "manifest.json": '{"name": "my web page"}'}
"""Files of a user that have the names of a run folder's."""


def save_users_files(folder: Path) -> None:
    """Write :data:`USERS_FILES`."""
    folder.mkdir(parents=True)
    for name, text in USERS_FILES.items():
        (folder / name).write_text(text)


def test_bench_refuses_a_folder_in_use(folder: Path, command: Command) -> None:
    write_grid(folder)
    with ResultStore(folder / "runs/g").lock():
        done = command("bench", "g.yaml")
    assert_refused(done, f"fedsim, process {os.getpid()}, is running in this folder")


@pytest.mark.parametrize(("users_folder", "options"), [("runs/g", []), ("mine", ["--out", "mine"])])
def test_bench_does_not_overwrite_a_users_files(
    folder: Path, command: Command, users_folder: str, options: list[str]
) -> None:
    write_grid(folder)
    save_users_files(folder / users_folder)
    done = command("bench", "g.yaml", "--in-process", *options)
    assert_refused(done, "is not empty and has no manifest of a fedsim run")
    assert "with --out" in done.stderr
    assert texts_in(folder / users_folder) == USERS_FILES


def test_dry_run_in_a_users_folder_writes_nothing(folder: Path, command: Command) -> None:
    write_grid(folder)
    save_users_files(folder / "runs/g")
    assert command("bench", "g.yaml", "--dry-run").returncode == 0
    assert texts_in(folder / "runs/g") == USERS_FILES


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "g.yaml", "--out", "g.yaml"],
        ["bench", "g.yaml", "--out", "g.yaml", "--dry-run"],
        ["audit", "dp-gaussian", "--out", "g.yaml"],
    ],
)
def test_results_in_a_file_are_refused(
    folder: Path, command: Command, arguments: list[str]
) -> None:
    write_grid(folder)
    assert_refused(command(*arguments), "fedsim: g.yaml: is a file, and results need a folder; ")


# --- dry runs ---


def test_dry_run_has_cells_noise_and_partitions(folder: Path) -> None:
    linear = {"name": "fedavg-linear", "params": {"rounds": 2}}
    grid = SMALL | {"algorithms": ["dp-gaussian", linear], "epsilon": [1, 4]}
    plan: Any = fedsim.bench(grid, dry_run=True)
    assert plan.cells["algorithm"].tolist() == ["dp-gaussian", "dp-gaussian", "fedavg-linear"]
    assert plan.cells["σ"].notna().tolist() == [True, True, False]
    means = plan.noise.query("part == 'class means'").set_index("ε")["noise / signal"]
    assert means[1] > 2 * means[4]
    assert plan.partitions.groupby("seed")["rows"].sum().tolist() == [200]


def test_dry_run_prints_warnings_and_writes_nothing(folder: Path, command: Command) -> None:
    y = np.arange(120) % 3
    is_test = (y == 1) & (np.arange(120) < 60)
    x = np.random.default_rng(0).random((120, 4))
    np.savez(folder / "d.npz", x=x, y=y, split=np.where(is_test, 2, 0))
    datasets = [SMALL["dataset"], {"npz": "d.npz", "name": "mine"}]
    write_grid(folder, epsilon=[1, 4], delta=0.02, dataset=datasets)
    done = command("bench", "g.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    for words in (
        "warning: δ = 0.02 is not below 1/n = 0.005 for the 200 training rows",
        "warning: mine has no test row of 2 of its 3 classes (0, 2): balanced accuracy is over the "
        "others",
        "0.0 MiB of memory on each machine",
        "time: unknown for ",
        "nothing was run",
    ):
        assert words in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["d.npz", "g.yaml"]


def test_dry_run_estimates_time_from_finished_cells(folder: Path, command: Command) -> None:
    fedsim.bench(SMALL | {"algorithms": ["dp-gaussian"]}, out=folder / "runs/g", in_process=True)
    write_grid(folder, "dp-gaussian", "dp-cvae", seeds=[0, 1, 2])
    shown = command("bench", "g.yaml", "--dry-run").stdout
    assert re.search(r"time: about 0:00:\d\d of training for 2 cells, unknown for", shown)


# --- plug-ins ---


@pytest.fixture
def grid_with_refused_plug_in(folder: Path) -> None:
    """A grid of three plug-ins: one raises on import, one has a wrong loss, one is good."""
    (folder / "below").mkdir()
    write(folder, "raises", "raise RuntimeError('half [red]written[/]')\n")
    write(folder / "below", "good", GOOD)
    mean_loss = changed("unit * gaussian_nll(batch.x, decoded, log_variance),", "unit.sum(),")
    write(folder, "batch_loss", mean_loss)
    write_grid(
        folder,
        "raises.py:MyMethod",
        {"name": "batch_loss.py:MyMethod", "params": {"rounds": 3}},
        {"name": "below/good.py:MyMethod", "params": {"rounds": 3}},
        epsilon=4,
    )


@pytest.mark.usefixtures("grid_with_refused_plug_in")
def test_refused_plug_in_stops_a_bench(command: Command) -> None:
    done = command("bench", "g.yaml", "--in-process")
    assert_refused(done, "raises.py:1: RuntimeError: half [red]written[/]")


@pytest.mark.usefixtures("grid_with_refused_plug_in")
def test_bench_with_keep_going_runs_all_but_refused_plug_ins(command: Command) -> None:
    done = command("bench", "g.yaml", "--in-process", "--keep-going")
    assert done.returncode == 1, done.stdout
    assert done.stderr == ""
    statuses = {row.label: row.status for row in read_results("runs/g").rows}
    assert statuses == {"batch_loss.py:MyMethod": "failed", "below/good.py:MyMethod": "ok"}
    (refused,) = json.loads(Path("runs/g/manifest.json").read_text())["refused"]
    assert refused["algorithm"] == "raises.py:MyMethod"


@slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "--quick", "--unit", "example", "--trust", "aggregate"],
        ["audit", "--pairs", "6"],
    ],
)
def test_check_and_audit_hide_what_a_method_prints(folder: Path, arguments: list[str]) -> None:
    first_line = "        decoded, kl = model("
    write(
        folder,
        "chatty",
        changed(first_line, f'        print("chat")\n{first_line}'),
    )
    command = [FEDSIM, *arguments, "chatty.py:MyMethod"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "chat\n" not in output


STOPS = """
import os, psutil
from baselines.dp_gaussian import DPGaussian

class Stops(DPGaussian):
    def generator(self, *given):
        children = psutil.Process().children(recursive=True)
        print(f"in process {os.getpid()}, which started {[each.name() for each in children]}")
        breakpoint()
        return super().generator(*given)
"""


@slow
def test_bench_in_process_stops_at_breakpoints(folder: Path) -> None:
    (folder / "stops.py").write_text(STOPS)
    write_grid(folder, "stops.py:Stops")
    command = [FEDSIM, "bench", "--grid", "g.yaml", "--in-process"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = process.communicate("p type(self).__name__\nc\n" * 8, timeout=PATIENCE)
    assert process.returncode == 0, out
    assert f"in process {process.pid}, which started []" in out
    assert "(Pdb) 'Stops'" in out


# --- methods ---


@pytest.mark.parametrize("name", SHIPPED)
def test_every_parameter_has_a_type_a_default_and_a_meaning(name: str) -> None:
    parameters = describe(name).parameters
    assert [entry.name for entry in parameters] == list(lookup(name).Params.model_fields)
    for entry in parameters:
        assert entry.type
        assert entry.default
        assert entry.meaning


def test_list_has_every_algorithm_by_group_in_80_columns() -> None:
    text = repr(Catalogue(tuple(SHIPPED)))  # without what other tests registered
    assert max(map(len, text.splitlines())) <= 80
    assert [name for name in SHIPPED if f"\n  {name} " not in text] == []
    groups = {block.partition("\n")[0]: block for block in text.split("\n\n")}
    assert "dp-linear" in groups["classifiers"]
    for name in ("dp-cgan", "dp-cvae", "weight-noise"):
        assert name in groups["for reproduction"]


def test_description_states_the_units_of_each_claim() -> None:
    assert describe("weight-noise").support == {"proved": ["example", "group", "client"]}
    assert describe("fedavg-cvae").support == {}
    assert "client" not in describe("fedhypevae-sites").support["proved"]


@pytest.mark.parametrize(
    "words",
    [
        "The Gaussian mechanism on clipped updates",
        "weight_noise_cvae.py:",
        "a generator",
        "McMahan",
        "client_rate",
    ],
)
def test_description_has_text_class_source_and_parameters(words: str) -> None:
    assert words in repr(fedsim.algorithms("weight-noise"))


def test_plug_ins_are_described_and_refused_ones_hide_no_other(folder: Path) -> None:
    good = write(
        folder,
        "described",
        changed("My method: ", "My method: [red]mine[/] "),
    )
    params = "    Params = MyMethodParams"
    releases = f"{params}\n\n    def releases(self):\n        return 1 / 0\n"
    bad = write(folder, "cannot_plan", changed(params, releases))
    with pytest.raises(PluginError, match=r"cannot_plan.py:\d+: MyMethod raised ZeroDivisionError"):
        describe(bad)
    text = repr(Catalogue((good, bad)))
    assert "[red]mine[/]" in text
    assert "ZeroDivisionErr" in text


# --- checks and audits ---


@pytest.mark.parametrize(
    ("options", "check", "summary"),
    [
        (["--quick"], None, "2 failed"),
        pytest.param(
            [],
            "passed",
            "1 passed, 1 failed",
            marks=slow,
        ),
    ],
)
def test_check_counts_for_cells_of_the_same_parameters(
    tmp_path: Path,
    command: Command,
    bench: Callable[..., Ran],
    options: list[str],
    check: str | None,
    summary: str,
) -> None:
    (tmp_path / "strong.py").write_text((BROKEN / "noise.py").read_text())
    name = f"{tmp_path}/strong.py:Strength"
    sound = {"name": name, "label": "sound", "params": {"rounds": 3, "strength": 0.0}}
    broken = {"name": name, "label": "broken", "params": {"rounds": 3, "strength": 1.0}}
    run = bench(small_grid(sound, broken, epsilon=4.0)).folder
    common = ("--trust", "aggregate", "--param", "rounds=3", "--run", str(run))

    done = command("check", name, "--param", "strength=0", *options, *common)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].endswith("checks passed (example, aggregate)")
    assert [row.check for row in read_results(run).rows] == [check, None]

    done = command("check", name, "--param", "strength=1", "--quick", *common)
    assert done.returncode == 1
    assert "fix: " in done.stdout
    assert max(map(len, done.stdout.splitlines()[1:-2])) <= 100
    assert [row.check for row in read_results(run).rows] == [check or "failed", "failed"]
    assert f"results with this code: {summary}" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "nothing.py:Method"], "there is no file"),
        (
            ["check", f"{BROKEN}/results.py:CannotBePlanned"],
            "raised ZeroDivisionError: division by zero",
        ),
        (["audit", "runs/nosuch"], "runs/nosuch: there is no such run folder; give one"),
        (
            ["audit", ".", "--pairs", "10"],
            ".: is a run folder, whose audit takes no --pairs; leave that out: the cells",
        ),
        (
            ["audit", ".", "--pairs", "10", "--out", "here"],
            ".: is a run folder, whose audit takes no --pairs and no --out; leave that out: ",
        ),
    ],
)
def test_mistake_in_a_check_or_an_audit_is_one_line(
    command: Command, arguments: list[str], words: str
) -> None:
    assert_refused(command(*arguments), words)


# --- accounts ---


def test_epsilon_of_a_noise_is_close_to_dp_accountings() -> None:
    account = fedsim.account(
        sigma=1.1,
        sample_rate=0.01,
        rounds=3000,
        delta=1e-5,
    )
    peer = 2.67549
    assert peer < account.epsilon < 1.002 * peer
    assert account.epsilons[1e-6] > account.epsilons[1e-5] > account.epsilons[1e-4]
    assert account.epsilons[1e-5] == account.epsilon
    assert "ε = 2.679 at δ = 1e-5" in repr(account)
    assert "ε = 2.896e-5 at δ = 1e-6" in repr(fedsim.account(sigma=1e5, delta=1e-6))


def test_noise_of_a_budget_has_its_epsilon() -> None:
    account = fedsim.account(epsilon=2.0, rounds=100, sample_rate=0.1)
    assert 1.98 < account.epsilon <= 2.0
    again = fedsim.account(sigma=account.sigma, rounds=100, sample_rate=0.1)
    assert again.epsilon == account.epsilon


def test_account_refuses_values_out_of_range() -> None:
    with pytest.raises(fedsim.UserError, match="neither `epsilon` nor `sigma` is given"):
        fedsim.account()
    with pytest.raises(fedsim.UserError, match="both `epsilon` and `sigma` are given"):
        fedsim.account(epsilon=1.0, sigma=1.0)
    with pytest.raises(fedsim.UserError, match=r"^rounds: must be above 0 .*, got 0"):
        fedsim.account(sigma=1, rounds=0)


# --- embeddings ---


@pytest.fixture
def pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures and an encoder, offline, with a cache of its own."""
    save_encoder(folder / "dino")
    save_folder(folder / "pets")
    monkeypatch.setenv("FEDSIM_CACHE", str(folder / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


def embed_options(**changes: str) -> list[str]:
    """The options that embed the pictures, with other values for some."""
    options = {
        "dataset": "imagefolder:pets",
        "encoder": "dino",
        "out": "pets.npz",
        **changes,
    }
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def test_images_become_embeddings_that_a_grid_reads(pictures: Path, command: Command) -> None:
    done = command("embed", *embed_options(encoder="{name: dino, pool: mean, dtype: float16}"))
    assert done.returncode == 0, done.stderr
    assert "24 embeddings of 16 dimensions" in done.stdout
    with np.load(pictures / "pets.npz") as file:
        assert file["x"].shape == (24, 16)
        np.testing.assert_allclose(
            np.linalg.norm(file["x"], axis=1),
            1,
            atol=1e-6,
        )
    grid = {"algorithms": ["dp-gaussian"], "dataset": {"npz": "pets.npz"}, "clients": 2}
    plan: Any = fedsim.bench(grid, dry_run=True)
    assert "eel" in plan.partitions.columns


def test_unreadable_images_are_left_out_only_if_asked(pictures: Path, command: Command) -> None:
    (pictures / "pets/cat/1.png").write_bytes(b"\x89PNG")
    done = command("embed", *embed_options())
    assert done.returncode == 2
    assert "1 of 24 images cannot be decoded; repair them, or leave them out" in done.stderr
    done = command("embed", *embed_options(), "--skip-bad")
    assert "23 embeddings of 16 dimensions, 1 unreadable image left out" in done.stdout


def test_synthetic_embeddings_predict_embedded_images(pictures: Path, command: Command) -> None:
    save_folder(pictures / "many", each=60)
    assert (
        command(
            "embed",
            "imagefolder:many",
            "dino",
            "many.npz",
        ).returncode
        == 0
    )
    images = {"imagefolder": "many", "encoder": "dino"}
    grid = {
        "algorithms": ["dp-gaussian"],
        "dataset": images,
        "clients": 2,
        "epsilon": math.inf,
    }
    run = fedsim.bench(grid, in_process=True)
    assert isinstance(run, fedsim.Run)
    run.synth(pictures / "synth.npz", per_class=500)
    with np.load("synth.npz") as synthetic, np.load("many.npz") as real:
        classifier = LogisticRegression(max_iter=1000).fit(synthetic["x"], synthetic["y"])
        is_test = real["split"] == 2
        on_file = classifier.score(real["x"][is_test], real["y"][is_test])
    data = load(DatasetSpec.model_validate(images))
    in_grid = classifier.score(data.x_test, data.y_test)
    assert on_file == pytest.approx(in_grid, abs=0.01)


def test_file_of_embeddings_and_its_command_say_the_scale(pictures: Path, command: Command) -> None:
    done = command("embed", *embed_options())
    assert "every row has L2 norm 1" in done.stdout
    assert json.loads((pictures / "pets.json").read_text())["scale"] == "every row has L2 norm 1"


@pytest.mark.parametrize(
    "arguments",
    [
        ["embed", "imagefolder:scans", "dino", "scans.npz"],
        ["bench", "g.yaml", "--dry-run"],
    ],
)
def test_folders_of_hospitals_need_the_key_domains(
    pictures: Path, command: Command, arguments: list[str]
) -> None:
    save_folder(pictures / "scans/hospital_a", each=4)
    save_folder(pictures / "scans/hospital_b", each=4, start=100)
    write_grid(pictures, dataset={"imagefolder": "scans"}, encoder="dino")
    done = command(*arguments)
    assert done.returncode == 2
    assert "give `domains: true` beside `imagefolder`" in done.stderr
    assert not (pictures / "scans.npz").exists()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("dataset", "petz", "dataset: unknown data set 'petz'"),
        ("encoder", "facebook/dinov2-base", "hf download facebook/dinov2-base --revision f9e44c81"),
        ("encoder", "{name: dino, pool: max}", "encoder: pool: must be 'cls'"),
        ("out", "pets.csv", "out pets.csv: is not an .npz file; give pets.npz"),
        ("batch", "0", "--batch: must be at least 1, got 0"),
    ],
)
def test_mistake_in_an_embedding_is_one_line_and_writes_nothing(
    pictures: Path, command: Command, option: str, value: str, words: str
) -> None:
    assert_refused(command("embed", *embed_options(**{option: value})), words)
    assert sorted(path.name for path in pictures.iterdir()) == ["dino", "pets"]
