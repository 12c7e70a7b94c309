"""What the API does by name and by command: benches, lists, checks, audits, accounts and
embeddings.
"""

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
from benches import PATIENCE, Done, Ran, interruptible
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

BROKEN = Path(__file__).parents[1] / "broken"
FEDSIM = Path(sys.executable).with_name("fedsim")
FOUR = """
algorithms:
  - {name: weight-noise, params: {rounds: 2, local_steps: 5}}
  - {name: fedhypevae, params: {rounds: 10}}
clients: [4]
epsilon: [4]
seeds: [0, 1]
evaluation: {per_class: 30, evaluators: []}
"""
KEPT = {"trainings": 4, "evaluations": 4, "references": 3}
"""Files in which a line is never changed again, and how many they have in the end."""
Command = Callable[..., Done]


def kept(run: Path) -> dict[str, list[str]]:
    return {
        name: path.read_text().splitlines()
        for name in KEPT
        if (path := run / f"{name}.jsonl").exists()
    }


@pytest.fixture
def started(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A bench in a process group of its own, as a terminal starts it; it does not outlive the
    test.
    """
    (tmp_path / "small.yaml").write_text(FOUR)
    command = [FEDSIM, "bench", "small.yaml", "--in-process"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=pipe,
        stderr=pipe,
        text=True,
        process_group=0,
        preexec_fn=interruptible,
    )
    while not kept(tmp_path / "runs/small").get("evaluations"):
        assert process.poll() is None, process.communicate()
        os.sched_yield()
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_a_bench_that_is_interrupted_or_killed_goes_on_by_the_same_command(
    tmp_path: Path,
    started: subprocess.Popen[str],
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
) -> None:
    os.killpg(started.pid, number)
    out, err = started.communicate(timeout=PATIENCE)
    if number == signal.SIGINT:
        assert (started.returncode, err) == (130, "")
        assert "interrupted: " in out
    monkeypatch.chdir(tmp_path)
    before = kept(tmp_path / "runs" / "small")
    again = command("bench", "small.yaml", "--in-process")
    assert again.returncode == 0, again.stdout + again.stderr
    after = kept(tmp_path / "runs" / "small")
    assert {name: after[name][: len(lines)] for name, lines in before.items()} == before
    assert {name: len(lines) for name, lines in after.items()} == KEPT


def test_an_interruption_is_raised_and_the_next_one_is_heard_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)

    def interrupted(*args: object, **how: object) -> None:
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # as the first one leaves it for an orderly end
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsim.runs.bench.Scheduler.run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fedsim.bench(SMALL, algorithms=["dp-gaussian"], out=folder / "run", in_process=True)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_path_and_a_mapping_are_the_same_grid_and_a_plug_in_s_path_is_relative_to_it(
    folder: Path,
) -> None:
    (folder / "g.yaml").write_text(
        "algorithms: [dp-gaussian]\nclients: 4\nevaluation: {per_class: 10}\n"
    )
    of_file = load_grid(
        "g.yaml", {"evaluation.probe_c": 1.0, "epsilon": [1, float("inf")]}, ["dp-linear"]
    )
    written = {
        "name": "g",
        "algorithms": ["dp-gaussian"],
        "clients": 4,
        "evaluation": {"per_class": 10},
    }
    assert of_file == load_grid(
        written, {"evaluation.probe_c": 1.0, "epsilon": [1, float("inf")]}, ["dp-linear"]
    )
    (folder / "grids").mkdir()
    (folder / "beside_grid.py").write_text(GOOD)
    (folder / "grids" / "in_grids.py").write_text(GOOD)
    (folder / "grids" / "g.yaml").write_text(
        "algorithms: [in_grids.py:MyMethod, ../beside_grid.py:MyMethod]\n"
    )
    entries = load_grid(folder / "grids" / "g.yaml").algorithms
    assert [entry.name for entry in entries] == [
        "grids/in_grids.py:MyMethod",
        "beside_grid.py:MyMethod",
    ]
    assert [entry.display for entry in entries] == [
        "in_grids.py:MyMethod",
        "../beside_grid.py:MyMethod",
    ]


MISTAKES: dict[str, tuple[str, ...]] = {
    "algorithms: [fedhypevae]\nepsilonn: [1]\n": ("g.yaml:2", "did you mean 'epsilon'"),
    "algorithms: [fedhypevae]\nclients: [100000]\n": ("clients[0]", "100000"),
    "algorithms: ['leave.py:X']\n": ("algorithms[0]", "SystemExit: 3"),
    "algorithms: ['nobody:Knows']\nseeds: 0-999\nepsilon: [1, 2, 4]\nalpha: [1, 2]\n": (
        "stands for up to 6,000 cells; give --yes to run more than 5,000, or fewer values",
    ),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_one_line_with_its_place_and_nothing_is_written(
    folder: Path, command: Command, text: str
) -> None:
    (folder / "g.yaml").write_text(text)
    (folder / "leave.py").write_text("import sys\nsys.exit(3)\n")
    done = command("bench", "--grid", "g.yaml")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert [said for said in MISTAKES[text] if said not in done.stderr] == []
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {"g.yaml", "leave.py"}
    with pytest.raises(fedsim.UserError, match=r"^set epsilon\[1\]: .*greater than 0"):
        fedsim.bench({"algorithms": ["dp-gaussian"]}, set={"epsilon": [1, -1]}, in_process=True)


def test_a_grid_of_many_cells_is_resolved_once_it_is_confirmed_and_a_folder_in_use_is_refused(
    folder: Path, command: Command
) -> None:
    (folder / "g.yaml").write_text([*MISTAKES][-1])
    assert (
        "'nobody:Knows' cannot be imported"
        in command("bench", "g.yaml", "--dry-run", "--yes").stderr
    )
    with ResultStore(folder / "runs" / "g").lock():
        assert (
            f"fedsim, process {os.getpid()}, is running in this folder"
            in command("bench", "g.yaml", "--yes").stderr
        )


USERS_FILES = {"report.html": "<p>mine</p>", "manifest.json": '{"name": "my web page"}'}
"""Files of a user that have the names of a run folder's."""


def quick_grid(folder: Path) -> Path:
    """The file of a grid with one short cell, called ``g``."""
    path = folder / "g.yaml"
    path.write_text(json.dumps(SMALL | {"algorithms": ["dp-gaussian"]}))
    return path


def save_users_files(folder: Path) -> None:
    """Write :data:`USERS_FILES`."""
    folder.mkdir(parents=True)
    for name, text in USERS_FILES.items():
        (folder / name).write_text(text)


@pytest.mark.parametrize("options", [(), ("--out", "mine")])
def test_a_users_own_files_are_not_overwritten(
    folder: Path, command: Command, options: tuple[str, ...]
) -> None:
    quick_grid(folder)
    users_folder = folder / (options[-1] if options else "runs/g")
    save_users_files(users_folder)
    done = command("bench", "g.yaml", "--in-process", *options)
    assert done.returncode == 2
    assert "is not empty and has no manifest of a fedsim run" in done.stderr
    assert "with --out" in done.stderr
    assert {path.name: path.read_text() for path in users_folder.iterdir()} == USERS_FILES


def test_a_dry_run_in_a_users_folder_writes_nothing(folder: Path, command: Command) -> None:
    quick_grid(folder)
    save_users_files(folder / "runs/g")
    assert command("bench", "g.yaml", "--dry-run").returncode == 0
    assert {path.name: path.read_text() for path in (folder / "runs/g").iterdir()} == USERS_FILES


def test_a_bench_that_ended_before_its_manifest_goes_on(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_grid(folder)

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fedsim.runs.bench.write_manifest", interrupted)
        assert command("bench", "g.yaml", "--in-process").returncode == 130
    assert [path.name for path in (folder / "runs/g").iterdir()] == [".lock"]
    (folder / "runs/g/.manifest.json.4242.part").write_text('{"format')
    assert command("bench", "g.yaml", "--in-process").returncode == 0
    assert (folder / "runs/g/report.html").exists()


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_bench_into_a_file_is_refused_with_one_line(
    folder: Path, command: Command, more: list[str]
) -> None:
    (folder / "g.yaml").write_text(json.dumps(SMALL | {"algorithms": ["dp-gaussian"]}))
    done = command("bench", "g.yaml", "--out", "g.yaml", *more)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "fedsim: g.yaml: is a file, and results need a folder; give a new folder, or that of an "
        "earlier run\n"
    )


def test_an_audit_into_a_file_is_refused_with_one_line(folder: Path, command: Command) -> None:
    (folder / "file").write_text("")
    done = command("audit", "dp-gaussian", "--out", "file")
    assert done.returncode == 2
    assert done.stderr.startswith("fedsim: file: is a file, and results need a folder; ")


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


def test_a_dry_run_has_cells_noise_partitions_memory_and_time_and_writes_nothing(
    folder: Path, command: Command
) -> None:
    grid = SMALL | {
        "algorithms": ["dp-gaussian", {"name": "fedavg-linear", "params": {"rounds": 2}}],
        "epsilon": [1, 4],
    }
    plan: Any = fedsim.bench(grid, dry_run=True)
    assert plan.cells["algorithm"].tolist() == ["dp-gaussian", "dp-gaussian", "fedavg-linear"]
    assert plan.cells["σ"].notna().tolist() == [True, True, False]
    means = plan.noise.query("part == 'class means'").set_index("ε")["noise / signal"]
    assert means[1] > 2 * means[4]
    assert plan.partitions.groupby("seed")["rows"].sum().tolist() == [200]
    y = np.arange(120) % 3
    np.savez(
        folder / "d.npz",
        x=np.random.default_rng(0).random((120, 4)),
        y=y,
        split=np.where((y == 1) & (np.arange(120) < 60), 2, 0),
    )
    (folder / "g.yaml").write_text(
        json.dumps(
            grid | {"delta": 0.02, "dataset": [SMALL["dataset"], {"npz": "d.npz", "name": "mine"}]}
        )
    )
    done = command("bench", "g.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "warning: δ = 0.02 is not below 1/n = 0.005 for the 200 training rows" in done.stdout
    assert (
        "warning: mine has no test row of 2 of its 3 classes (0, 2): balanced accuracy is "
        "over the others" in done.stdout
    )
    for said in (
        "0.0 MiB once a machine",
        "time: not known before a cell of dp-gaussian, fedavg-linear has run in runs/g",
        "nothing was run",
    ):
        assert said in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["d.npz", "g.yaml"]


def test_dry_run_estimates_time_from_finished_cells(folder: Path, command: Command) -> None:
    fedsim.bench(SMALL | {"algorithms": ["dp-gaussian"]}, out=folder / "runs/g", in_process=True)
    grid = SMALL | {"algorithms": ["dp-gaussian", "dp-cvae"], "seeds": [0, 1, 2]}
    (folder / "g.yaml").write_text(json.dumps(grid))
    shown = command("bench", "g.yaml", "--dry-run").stdout
    assert re.search(r"time: about 0:00:\d\d of training for 2 cells, not known before", shown)


@pytest.mark.slow
def test_what_a_method_prints_in_a_check_or_an_audit_is_not_shown(folder: Path) -> None:
    write(
        folder,
        "chatty",
        changed(
            "        decoded, kl = model(", '        print("chat")\n        decoded, kl = model('
        ),
    )
    for told in (
        ["check", "--quick", "--unit", "example", "--trust", "aggregate"],
        ["audit", "--pairs", "6"],
    ):
        done = subprocess.run(
            [FEDSIM, *told, "chatty.py:MyMethod"], capture_output=True, text=True, timeout=PATIENCE
        )
        assert (done.returncode, "chat\n" in done.stdout + done.stderr) == (0, False), (
            done.stdout + done.stderr
        )


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


@pytest.mark.slow
def test_a_bench_in_process_stops_at_breakpoints_and_starts_nothing(folder: Path) -> None:
    (folder / "stops.py").write_text(STOPS)
    (folder / "g.yaml").write_text(json.dumps({"algorithms": ["stops.py:Stops"]} | SMALL))
    command = [FEDSIM, "bench", "--grid", "g.yaml", "--in-process"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate("p type(self).__name__\nc\n" * 8, timeout=PATIENCE)
    assert process.returncode == 0, out
    assert f"in process {process.pid}, which started []" in out
    assert "(Pdb) 'Stops'" in out


def test_plug_ins_that_are_refused_stop_a_bench_and_with_keep_going_the_rest_runs(
    folder: Path, command: Command
) -> None:
    (folder / "below").mkdir()
    write(folder, "raises", "raise RuntimeError('half [red]written[/]')\n")
    write(folder / "below", "good", GOOD)
    write(
        folder,
        "batch_loss",
        changed("unit * gaussian_nll(batch.x, decoded, log_variance),", "unit.sum(),"),
    )
    names = [f"{stem}.py:MyMethod" for stem in ("raises", "batch_loss", "below/good")]
    entries = [
        {"name": name, "params": {} if "raises" in name else {"rounds": 3}} for name in names
    ]
    (folder / "g.yaml").write_text(json.dumps(SMALL | {"algorithms": entries, "epsilon": 4}))
    stopped = command("bench", "g.yaml", "--in-process")
    assert (stopped.returncode, stopped.stdout, len(stopped.stderr.splitlines())) == (2, "", 1)
    assert "raises.py:1: RuntimeError: half [red]written[/]" in stopped.stderr
    went_on = command("bench", "g.yaml", "--in-process", "--keep-going")
    assert (went_on.returncode, went_on.stderr) == (1, ""), went_on.stdout
    assert {row.label: row.status for row in read_results("runs/g").rows} == {
        names[1]: "failed",
        names[2]: "ok",
    }
    refused = json.loads((folder / "runs/g/manifest.json").read_text())["refused"]
    assert [each["algorithm"] for each in refused] == names[:1]


# --- methods ---


@pytest.mark.parametrize("name", SHIPPED)
def test_every_parameter_has_its_default_and_a_sentence(name: str) -> None:
    found = describe(name)
    assert [each.name for each in found.parameters] == list(lookup(name).Params.model_fields)
    assert [
        each.name for each in found.parameters if not (each.type and each.default and each.meaning)
    ] == []


def test_the_list_has_every_algorithm_by_kind_in_80_columns_and_a_page_has_all_of_one() -> None:
    text = repr(Catalogue(tuple(SHIPPED)))  # without what other tests registered
    assert max(map(len, text.splitlines())) <= 80
    groups = {block.partition("\n")[0]: block for block in text.split("\n\n")}
    assert [name for name in SHIPPED if f"\n  {name} " not in text] == []
    assert "dp-linear" in groups["classifiers"]
    assert [
        name
        for name in ("dp-cgan", "dp-cvae", "weight-noise")
        if name not in groups["for reproduction"]
    ] == []
    assert describe("weight-noise").support == {"proved": ["example", "group", "client"]}
    assert describe("fedavg-cvae").support == {}
    assert "client" not in describe("fedhypevae-sites").support["proved"]
    page = repr(fedsim.algorithms("weight-noise"))
    for word in (
        "The Gaussian mechanism on clipped updates",
        "weight_noise_cvae.py:",
        "a generator",
        "McMahan",
        "client_rate",
    ):
        assert word in page


def test_a_plug_in_is_described_its_texts_are_no_markup_and_one_that_is_refused_hides_no_other(
    folder: Path,
) -> None:
    good = write(folder, "described", changed("My method: ", "My method: [red]mine[/] "))
    text = "    Params = MyMethodParams"
    bad = write(
        folder,
        "cannot_plan",
        changed(text, f"{text}\n\n    def releases(self):\n        return 1 / 0\n"),
    )
    with pytest.raises(PluginError, match=r"cannot_plan.py:\d+: ZeroDivisionError"):
        describe(bad)
    shown = repr(Catalogue((good, bad)))
    assert "[red]mine[/]" in shown
    assert "ZeroDivisionErr" in shown


@pytest.mark.parametrize(
    ("told", "check"), [(["--quick"], None), pytest.param([], "passed", marks=pytest.mark.slow)]
)
def test_check_names_failures_and_counts_for_matching_cells_of_named_runs(
    tmp_path: Path, command: Command, bench: Callable[..., Ran], told: list[str], check: str | None
) -> None:
    (tmp_path / "strong.py").write_text((BROKEN / "noise.py").read_text())
    name = f"{tmp_path}/strong.py:Strength"
    entries = [
        {"name": name, "label": label, "params": {"rounds": 3, "strength": at}}
        for label, at in (("sound", 0.0), ("broken", 1.0))
    ]
    run = bench(small_grid(*entries, epsilon=4.0)).folder
    options = ("--trust", "aggregate", "--param", "rounds=3", "--run", str(run))
    sound = command("check", name, "--param", "strength=0", *told, *options)
    assert (
        sound.returncode,
        sound.stdout.partition("\n")[0].endswith("checks passed (example, aggregate)"),
    ) == (0, True)
    assert [row.check for row in read_results(run).rows] == [check, None]
    broken = command("check", name, "--param", "strength=1", "--quick", *options)
    assert (broken.returncode, "fix: " in broken.stdout) == (1, True)
    assert max(map(len, broken.stdout.splitlines()[1:-2])) <= 100
    assert [row.check for row in read_results(run).rows] == [check or "failed", "failed"]
    assert f"rows of this code: {'1 passed, 1' if check else '2'} failed" in " ".join(
        broken.stdout.split()
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "nothing.py:Method"], "there is no file"),
        (
            ["check", f"{BROKEN}/results.py:CannotBePlanned"],
            ": ZeroDivisionError: division by zero",
        ),
        (["audit", "runs/nosuch"], "runs/nosuch: there is no such run folder; give one"),
        (
            ["audit", ".", "--pairs", "10"],
            ".: is a run folder, whose audit takes no --pairs; leave it out: the cells say all "
            "that is attacked",
        ),
        (
            ["audit", ".", "--pairs", "10", "--out", "here"],
            ".: is a run folder, whose audit takes no --pairs and no --out; leave them out: ",
        ),
    ],
)
def test_a_mistake_of_a_check_or_an_audit_is_one_line_and_exit_code_2(
    command: Command, arguments: list[str], words: str
) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert words in done.stderr


def test_sigma_and_epsilon_turn_into_each_other() -> None:
    spent = fedsim.account(sigma=1.1, sample_rate=0.01, rounds=3000, delta=1e-5)
    peer = 2.67549  # by dp-accounting
    assert peer < spent.epsilon < 1.002 * peer
    assert spent.epsilons[1e-6] > spent.epsilons[1e-5] == spent.epsilon > spent.epsilons[1e-4]
    assert "ε = 2.6786 at δ = 1e-05" in repr(spent)
    bought = fedsim.account(epsilon=2.0, rounds=100, sample_rate=0.1)
    assert 1.98 < bought.epsilon <= 2.0
    assert fedsim.account(sigma=bought.sigma, rounds=100, sample_rate=0.1).epsilon == bought.epsilon
    for given, said in (
        ({}, "^epsilon: one of"),
        ({"sigma": 1, "rounds": 0}, "^rounds: must be above 0 and at most 1e.09, got 0"),
    ):
        with pytest.raises(fedsim.UserError, match=said):
            fedsim.account(**given)  # type: ignore[arg-type]


# --- embeddings ---


@pytest.fixture
def pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures and an encoder, offline, with a cache of its own."""
    save_encoder(folder / "dino")
    save_folder(folder / "pets")
    monkeypatch.setenv("FEDSIM_CACHE", str(folder / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


EMBED = {"--dataset": "imagefolder:pets", "--encoder": "dino", "--out": "pets.npz"}


def test_images_become_embeddings_that_a_grid_reads_and_truncated_ones_are_left_out_if_asked(
    pictures: Path, command: Command
) -> None:
    options = [word for pair in EMBED.items() for word in pair]
    halved = EMBED | {"--encoder": "{name: dino, pool: mean, dtype: float16}"}
    done = command("embed", *(word for pair in halved.items() for word in pair))
    assert (done.returncode, "24 embeddings of 16 dimensions" in done.stdout) == (0, True), (
        done.stderr
    )
    with np.load(pictures / "pets.npz") as held:
        assert held["x"].shape == (24, 16)
        np.testing.assert_allclose(np.linalg.norm(held["x"], axis=1), 1, atol=1e-6)
    plan: Any = fedsim.bench(
        {"algorithms": ["dp-gaussian"], "dataset": {"npz": "pets.npz"}, "clients": 2}, dry_run=True
    )
    assert "eel" in plan.partitions.columns
    (pictures / "pets/cat/1.png").write_bytes(b"\x89PNG")
    refused = command("embed", *options)
    assert (
        refused.returncode,
        "1 of 24 images cannot be decoded; repair them, or leave them out" in refused.stderr,
    ) == (2, True)
    assert (
        "23 embeddings of 16 dimensions, 1 bad images left out"
        in command("embed", *options, "--skip-bad").stdout
    )


def test_synthetic_rows_serve_for_embedded_images_as_in_the_grid(
    pictures: Path, command: Command
) -> None:
    save_folder(pictures / "many", each=60)
    assert command("embed", "imagefolder:many", "dino", "many.npz").returncode == 0
    images = {"imagefolder": "many", "encoder": "dino"}
    run = fedsim.bench(
        {"algorithms": ["dp-gaussian"], "dataset": images, "clients": 2, "epsilon": math.inf},
        in_process=True,
    )
    assert isinstance(run, fedsim.Run)
    run.synth(pictures / "synth.npz", per_class=500)
    with np.load("synth.npz") as synthetic, np.load("many.npz") as real:
        classifier = LogisticRegression(max_iter=1000).fit(synthetic["x"], synthetic["y"])
        tested = real["split"] == 2
        on_embedded_rows = classifier.score(real["x"][tested], real["y"][tested])
    in_grid = load(DatasetSpec.model_validate(images))
    on_grids_rows = classifier.score(in_grid.x_test, in_grid.y_test)
    assert on_embedded_rows == pytest.approx(on_grids_rows, abs=0.01)


def test_a_file_of_embeddings_and_its_command_say_the_scale(
    pictures: Path, command: Command
) -> None:
    done = command("embed", "imagefolder:pets", "dino", "pets.npz")
    assert "every row has L2 norm 1" in done.stdout
    assert json.loads((pictures / "pets.json").read_text())["scale"] == "every row has L2 norm 1"


@pytest.mark.parametrize("use", ["embed", "bench"])
def test_folders_of_hospitals_need_the_key_domains(
    pictures: Path, command: Command, use: str
) -> None:
    for place, hospital in enumerate(("hospital_a", "hospital_b")):
        save_folder(pictures / "scans" / hospital, each=4, start=100 * place)
    (pictures / "g.yaml").write_text(
        "dataset: {imagefolder: scans}\nencoder: dino\nalgorithms: [dp-gaussian]\n"
    )
    embedding = ("embed", "imagefolder:scans", "dino", "scans.npz")
    done = command(*(embedding if use == "embed" else ("bench", "g.yaml", "--dry-run")))
    assert done.returncode == 2
    assert "give `domains: true` beside `imagefolder`" in done.stderr
    assert not (pictures / "scans.npz").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--dataset", "petz"), "dataset: unknown data set 'petz'"),
        (
            ("--encoder", "facebook/dinov2-base"),
            "hf download facebook/dinov2-base --revision f9e44c81",
        ),
        (("--encoder", "{name: dino, pool: max}"), "encoder: pool: 'max': Input should be 'cls'"),
        (("--out", "pets.csv"), "out pets.csv: is not an .npz file; give pets.npz"),
        (("--batch", "0"), "--batch: must be at least 1, got 0"),
    ],
)
def test_a_mistake_of_an_embedding_is_one_line_and_nothing_is_written(
    pictures: Path, command: Command, wrong: tuple[str, str], message: str
) -> None:
    done = command("embed", *(word for pair in (EMBED | dict([wrong])).items() for word in pair))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert message in done.stderr
    assert sorted(path.name for path in pictures.iterdir()) == ["dino", "pets"]
