import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from benches import PATIENCE, PLUGIN, Done, interruptible, slowness
from plug_ins import GOOD, changed, write

from fedsim.results.store import ResultStore

FEDSIM = Path(sys.executable).with_name("fedsim")
Fedsim = Callable[..., Done]
SMALL = """
algorithms: [{name: weight-noise, params: {rounds: 2, local_steps: 5}}, {name: fedhypevae, params: {rounds: 30}}]
clients: [4]
epsilon: [4]
seeds: [0, 1]
evaluation: {per_class: 30}
"""
ENDLESS = '''
from pathlib import Path

from baselines.weight_noise_cvae import WeightNoiseCVAE


class Endless(WeightNoiseCVAE):
    """Computes on in its third round until there is a file `end`."""

    def server_step(self, server, round_, total):
        while round_.number == 2 and not Path(__file__).with_name("end").exists():
            pass
        return super().server_step(server, round_, total)
'''


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A bench as a process of its own."""
    command = [FEDSIM, "bench", "--grid", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)


Started = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    """Starts a bench as a terminal does, in a process group of its own; nothing of it outlives the test."""
    processes: list[subprocess.Popen[str]] = []
    (tmp_path / "small.yaml").write_text(SMALL)

    def start(*options: str) -> subprocess.Popen[str]:
        command = [FEDSIM, "bench", "--grid", "small.yaml", *options]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True, process_group=0, preexec_fn=interruptible)
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the bench ended early: {process.communicate()}"
        assert time.monotonic() < end, "it did not come to that in time"
        os.sched_yield()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


MISTAKES = {
    "unknown key": ("algorithms: [fedhypevae]\nepsilonn: [1]\n", "g.yaml:2", "epsilon"),
    "unknown algorithm": ("algorithms: [fedhypvae]\n", "algorithms[0]", "did you mean 'fedhypevae'"),
    "unknown parameter": ("algorithms:\n- {name: fedhypevae, params: {betta: 1}}\n", "algorithms[0].params.betta", "beta"),
    "unknown data set": ("algorithms: [fedhypevae]\ndataset: digit\n", "dataset", "did you mean 'digits'"),
    "negative epsilon": ("algorithms: [fedhypevae]\nepsilon: [1, -1]\n", "g.yaml:2: epsilon[1]", "> 0"),
    "more clients than the data allow": ("algorithms: [fedhypevae]\nclients: [100000]\n", "clients[0]", "100000"),
    "not YAML": ("algorithms: [fedhypevae\n", "g.yaml", "YAML"),
    "a delta that is none": ("algorithms: [fedhypevae]\ndelta: 0.5\n", "g.yaml:2: delta", "give a number <= 0.1"),
    "a shift beyond all rows": (
        "algorithms: [dp-gaussian]\npartition: {scheme: feature-shift, strength: 1000.0}\n",
        "partition.strength",
        "give a number <= 10",
    ),
    "a minimum size beyond all rows": (
        "algorithms: [fedhypevae]\nclients: [4]\npartition: {min_size: 100000}\n",
        "partition.min_size",
        "give at most 337",
    ),
    "a plug-in that leaves": ("algorithms: ['leave.py:X']\n", "algorithms[0]", "SystemExit: 3"),
    "a file without its class": ("algorithms: [leave.py]\n", "algorithms[0]", "name its class: leave.py:CLASS"),
    "an algorithm that is a number": ("algorithms: [3]\n", "algorithms[0]", "3 is no algorithm; give a name"),
    "a range in words": ("algorithms: [fedhypevae]\nseeds: 0 to 4\n", "g.yaml:2: seeds", "'0 to 4' is not a number"),
    "a time in base 60": ("algorithms: [fedhypevae]\nresources: {cell_timeout: 1:30}\n", "resources.cell_timeout", "'1:30' is not a time"),
    "a reading that is asked for twice": ("algorithms: [fedhypevae]\nevaluation: {readouts: [knn, knn]}\n", "evaluation.readouts", "twice"),
    "more rows than any machine holds": ("algorithms: [fedhypevae]\nevaluation: {per_class: 1000000000000}\n", "per_class", "<= 1000000"),
    "a name that is too long": (f"algorithms: [fedhypevae]\nname: {300 * 'n'}\n", "g.yaml:2: name", "give at most 100 letters"),
    "a picture in words": ("algorithms: ['x:smile:y']\n", "algorithms[0]", "'x:smile:y' cannot be imported"),
    "a layout that does not fit": ("algorithms: [fedhypevae]\nresources: {cpus_per_actor: 4096}\n", "resources", "4096"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2_and_nothing_is_written(tmp_path: Path, fedsim: Fedsim, mistake: str) -> None:
    text, place, right = MISTAKES[mistake]
    (tmp_path / "g.yaml").write_text(text)
    (tmp_path / "leave.py").write_text("import sys\nsys.exit(3)\n")
    done = fedsim("bench", "--grid", "g.yaml")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert place in done.stderr
    assert right in done.stderr
    assert done.stdout == ""
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"g.yaml", "leave.py"}


def test_a_delta_of_1_over_n_is_warned_of(tmp_path: Path, fedsim: Fedsim) -> None:
    (tmp_path / "g.yaml").write_text("algorithms: [dp-gaussian]\nclients: [4]\ndelta: 0.001\n")
    done = fedsim("bench", "--grid", "g.yaml", "--dry-run")
    assert done.returncode == 0
    assert "warning: δ = 0.001 is not below 1/n = 0.00074 for the 1348 training rows of digits" in done.stdout


def test_classes_without_a_test_row_are_warned_of(tmp_path: Path, fedsim: Fedsim) -> None:
    y = np.arange(120) % 3
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).random((120, 4)), y=y, split=np.where((y == 1) & (np.arange(120) < 60), 2, 0))
    (tmp_path / "g.yaml").write_text("algorithms: [dp-gaussian]\nclients: 2\ndataset: {npz: d.npz, name: mine}\n")
    done = fedsim("bench", "--grid", "g.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "warning: mine has no test row of 2 of its 3 classes (0, 2): balanced accuracy is over the others" in done.stdout


@pytest.mark.parametrize("out", ["", "runs/\udcff"])
def test_a_run_folder_without_a_name_that_can_be_told_is_refused(tmp_path: Path, fedsim: Fedsim, out: str) -> None:
    (tmp_path / "g.yaml").write_text("algorithms: [dp-gaussian]\n")
    done = fedsim("bench", "--grid", "g.yaml", "--out", out)
    assert done.returncode == 2
    assert ("--out: is empty" if not out else "is no path in UTF-8") in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["g.yaml"]


def test_a_grid_file_whose_name_cannot_be_told_is_refused(tmp_path: Path, fedsim: Fedsim) -> None:
    (tmp_path / "g\udcff.yaml").write_text("name: g\nalgorithms: [dp-gaussian]\n")
    done = fedsim("bench", "--grid", "g\udcff.yaml", "--dry-run")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "is no path in UTF-8" in done.stderr


def test_a_folder_in_use_is_refused_before_anything_is_prepared(tmp_path: Path, fedsim: Fedsim) -> None:
    (tmp_path / "g.yaml").write_text("algorithms: [no-such-algorithm]\n")  # which preparing would tell
    with ResultStore(tmp_path / "runs" / "g").lock():
        done = fedsim("bench", "--grid", "g.yaml")
    assert done.returncode == 2
    assert f"fedsim, process {os.getpid()}, is running in this folder; wait for it or stop it" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"), [((), "no grid file is given"), (("a.yaml", "--grid", "b.yaml"), "a.yaml and --grid b.yaml are both given")]
)
def test_a_grid_is_given_once_as_an_argument_or_an_option(fedsim: Fedsim, arguments: tuple[str, ...], told: str) -> None:
    done = fedsim("bench", *arguments)
    assert (done.returncode, done.stderr) == (2, f"fedsim: GRID: {told}; give one, as in `fedsim bench grid.yaml`\n")


def test_a_missing_file_and_a_wrong_override_are_mistakes_too(tmp_path: Path, fedsim: Fedsim) -> None:
    (tmp_path / "g.yaml").write_text("algorithms: [fedhypevae]\n")
    missing = fedsim("bench", "--grid", "none.yaml")
    override = fedsim("bench", "--grid", "g.yaml", "--set", "epsilon=[-3]")
    assert (missing.returncode, override.returncode) == (2, 2)
    assert "none.yaml: there is no such file" in missing.stderr
    assert "--set epsilon" in override.stderr


def test_a_dry_run_shows_every_cell_with_its_plan_and_writes_nothing(tmp_path: Path, fedsim: Fedsim) -> None:
    (tmp_path / "g.yaml").write_text(SMALL)
    done = fedsim("bench", "--grid", "g.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("proved") == 4
    for word in ("σ", "ε reached", "claim", "4 clients"):
        assert word in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["g.yaml"]


KEPT = ("trainings.jsonl", "judgements.jsonl", "references.jsonl")
"""Files in which a line is never changed again."""


def kept(run: Path) -> dict[str, list[str]]:
    return {name: lines(run / name) for name in KEPT}


def went_on(before: dict[str, list[str]], run: Path) -> None:
    """Check that what was there stayed, and that four cells are finished, none of them twice."""
    after = kept(run)
    assert {name: after[name][: len(before[name])] for name in KEPT} == before
    assert {name: len(after[name]) for name in KEPT} == {"trainings.jsonl": 4, "judgements.jsonl": 4, "references.jsonl": 3}
    assert len({json.loads(line)["training_id"] for line in after["trainings.jsonl"]}) == len(lines(run / "results.jsonl")) == 4


@pytest.mark.parametrize(
    ("options", "impatient"),
    [(["--in-process"], False), *(pytest.param([], impatient, marks=pytest.mark.slow) for impatient in (True, False))],
)
def test_ctrl_c_once_or_again_and_again_ends_a_bench_within_5_seconds_and_the_same_command_goes_on(
    tmp_path: Path, started: Started, fedsim: Fedsim, options: list[str], impatient: bool
) -> None:
    run = tmp_path / "runs" / "small"
    (tmp_path / "endless.py").write_text(ENDLESS)
    (tmp_path / "small.yaml").write_text(
        SMALL.replace("name: fedhypevae, params: {rounds: 30}", "name: 'endless.py:Endless', params: {rounds: 3}")
    )
    process = started(*options)
    wait_until(lambda: len(lines(run / "judgements.jsonl")) >= 1, process)
    before = slowness()
    asked = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    while impatient and process.poll() is None and time.monotonic() < asked + 20:
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
            break
        os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    took = time.monotonic() - asked
    assert took < 5 * max(before, slowness())
    assert process.returncode == 130
    assert "interrupted" in out
    assert err == ""
    left = kept(run)
    (tmp_path / "end").touch()
    again = fedsim("bench", "small.yaml", "--in-process")
    assert again.returncode == 0, again.stdout + again.stderr
    went_on(left, run)


def test_after_a_killed_driver_the_same_command_computes_only_what_is_missing(tmp_path: Path, started: Started, fedsim: Fedsim) -> None:
    run = tmp_path / "runs" / "small"
    process = started("--in-process")
    wait_until(lambda: len(lines(run / "judgements.jsonl")) >= 2, process)
    process.kill()
    process.wait()
    before = kept(run)
    again = fedsim("bench", "small.yaml", "--in-process")
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stderr == ""
    went_on(before, run)
    for name in ("rounds.jsonl", "summary.csv", "report.html", "curves/privacy_utility.png", "curves/privacy_utility.svg", "manifest.json"):
        assert (run / name).stat().st_size > 0


STOPS = '''
import os

import psutil

from baselines.dp_gaussian import DPGaussian


class Stops(DPGaussian):
    """Stops in its generator, which is made after its training."""

    def generator(self, *given):
        started = [each.name() for each in psutil.Process().children(recursive=True)]
        print(f"in process {os.getpid()}, which started {started}")
        breakpoint()
        return super().generator(*given)
'''


def test_a_bench_in_process_stops_at_breakpoints_starts_nothing_and_gives_the_rows_that_it_gives_on_ray(
    tmp_path: Path, fedsim: Fedsim
) -> None:
    (tmp_path / "stops.py").write_text(STOPS)
    entries = "['stops.py:Stops', {name: fedhypevae, params: {rounds: 3}}]"
    grid = f"algorithms: {entries}\nclients: 4\ndataset: {{name: digits, limit: 200}}\nevaluation: {{per_class: 10}}\n"
    (tmp_path / "g.yaml").write_text(grid)
    command = [FEDSIM, "bench", "--grid", "g.yaml", "--in-process", "--out", "here"]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    out, _ = process.communicate("p type(self).__name__\nc\n" * 8, timeout=PATIENCE)
    assert process.returncode == 0, out
    assert f"in process {process.pid}, which started []" in out
    assert "(Pdb) 'Stops'" in out

    command = [FEDSIM, "bench", "--grid", "g.yaml", "--out", "there"]
    silent = {**os.environ, "PYTHONBREAKPOINT": "0"}
    on_ray = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, env=silent)
    assert on_ray.returncode == 0, on_ray.stdout + on_ray.stderr
    assert any("which started" in path.read_text() for path in (tmp_path / "there" / "logs").iterdir())
    compared = fedsim("compare", "here", "there")
    assert (compared.returncode, "equal to the last bit: everything (2 rows)" in compared.stdout) == (0, True), compared.stdout
    assert {path.name for path in (tmp_path / "here").iterdir()} == {path.name for path in (tmp_path / "there").iterdir()}


def test_a_bench_in_process_on_a_cluster_is_a_mistake(tmp_path: Path, fedsim: Fedsim) -> None:
    (tmp_path / "g.yaml").write_text("algorithms: [dp-gaussian]\n")
    done = fedsim("bench", "--grid", "g.yaml", "--in-process", "--address", "auto")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--in-process: runs nothing on a cluster; leave out --address or --in-process" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["g.yaml"]


@pytest.mark.slow
def test_a_worker_that_dies_puts_no_line_of_rays_own_on_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(PLUGIN)
    (tmp_path / "g.yaml").write_text(
        "algorithms: [{name: 'plugin:Trouble', params: {rounds: 3, how: exit}}]\nclients: [4]\n"
        "dataset: {name: digits, limit: 200}\nevaluation: {per_class: 10}\n"
    )
    done = bench(tmp_path, "g.yaml")
    assert done.returncode == 1
    assert done.stderr == ""
    assert not re.search(r"^\[20\d\d-|core_worker|raylet|gcs_|\(pid=", done.stdout, re.MULTILINE), done.stdout
    assert "report: runs/g/report.html" in done.stdout


def test_partition_shows_and_draws_without_training(tmp_path: Path, fedsim: Fedsim) -> None:
    (tmp_path / "g.yaml").write_text("algorithms: [fedhypevae]\npartition: {scheme: shards, labels: 2}\nclients: [6]\n")
    plain = fedsim("partition", "g.yaml")
    assert plain.returncode == 0, plain.stderr
    assert "shards" in plain.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["g.yaml"]
    shown = fedsim("partition", "--grid", "g.yaml", "--show", "--out", "pictures")
    assert shown.returncode == 0, shown.stderr
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["partitions.png", "partitions.svg"]


def without_caches(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")


def test_plug_ins_that_are_refused_stop_a_bench_and_with_keep_going_the_rest_runs(tmp_path: Path, fedsim: Fedsim) -> None:
    (tmp_path / "below").mkdir()
    write(tmp_path, "raises", "raise RuntimeError('half [red]written[/]')\n")
    write(tmp_path, "batch_loss", changed("unit * gaussian_nll(batch.x, decoded, log_variance),", "unit.sum(),"))
    write(tmp_path / "below", "good", GOOD)
    names = [f"{stem}.py:MyMethod" for stem in ("raises", "batch_loss", "below/good")]
    entries = [{"name": name, "params": {} if "raises" in name else {"rounds": 3}} for name in names]
    grid = {"algorithms": entries, "clients": 4, "epsilon": 4, "scan": {"latent": [4]}, "evaluation": {"per_class": 30}}
    (tmp_path / "g.yaml").write_text(json.dumps(grid))
    before = without_caches(tmp_path)

    stopped = fedsim("bench", "--grid", "g.yaml", "--in-process")
    assert (stopped.returncode, stopped.stdout) == (2, "")
    assert "raises.py:1: RuntimeError: half [red]written[/]" in stopped.stderr
    assert len(stopped.stderr.strip().splitlines()) == 1
    assert without_caches(tmp_path) == before

    went_on = fedsim("bench", "--grid", "g.yaml", "--in-process", "--keep-going")
    assert went_on.returncode == 1, went_on.stdout + went_on.stderr
    assert went_on.stderr == ""
    (row,) = (json.loads(line) for line in lines(tmp_path / "runs/g/results.jsonl"))
    assert (row["label"], row["status"]) == ("below/good.py:MyMethod latent=4", "ok")
    for said in ("half [red]written[/]", "batch_loss.py:", "expected one number a row: [16]"):
        assert went_on.stdout.count(said) == 2
    refused = json.loads((tmp_path / "runs/g/manifest.json").read_text())["refused"]
    assert [each["algorithm"] for each in refused] == names[:2]
    assert "half [red]written[/]" in refused[0]["error"]


RUN_MISTAKES = {
    ("--algorithm", "fedhypvae"): "--algorithm: unknown algorithm 'fedhypvae'; did you mean 'fedhypevae'",
    ("--param", "roundz=3"): "--param roundz: unknown key 'roundz'; did you mean 'rounds'",
    ("--param", "rounds"): "--param rounds: is not of the form key=value",
    ("--epsilon", "-1"): "--epsilon: -1.0 is not positive",
    ("--clients", "100000"): "--clients: 100000 clients",
    ("--unit", "clients"): "--unit: unknown value 'clients'",
    ("--partition", "dirichlett"): "--partition: scheme: unknown scheme 'dirichlett'",
    ("--partition", "{scheme: shards, labels: 40}"): "--partition: labels: a client cannot hold 40 labels",
    ("--per-class", "0"): "--per-class",
    ("--dataset", "digit"): "--dataset: unknown data set 'digit'",
}


@pytest.mark.parametrize(("option", "value"), RUN_MISTAKES)
def test_a_mistake_in_a_flag_names_the_flag(tmp_path: Path, fedsim: Fedsim, option: str, value: str) -> None:
    given = {"--algorithm": "fedhypevae", option: value}
    done = fedsim("run", *(word for pair in given.items() for word in pair))
    assert done.returncode == 2, done.stdout + done.stderr
    assert RUN_MISTAKES[option, value] in done.stderr
    assert not (tmp_path / "runs").exists()


def test_what_an_output_s_encoding_lacks_is_a_question_mark(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    command, latin = [FEDSIM, "bench", "--grid", "small.yaml", "--dry-run"], {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, cwd=tmp_path, env=latin, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert b"?" in done.stdout
    assert b"4 cells; nothing was run" in done.stdout


def test_a_damaged_line_beside_the_rows_is_told_before_anything_runs(tmp_path: Path, fedsim: Fedsim) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    run = tmp_path / "runs" / "small"
    run.mkdir(parents=True)
    (run / "rounds.jsonl").write_text('hello\n{"training_id": "a", "round": 0}\n')
    done = fedsim("bench", "--grid", "small.yaml")
    assert done.returncode == 2
    assert "rounds.jsonl:1: this line cannot be read" in done.stderr
    assert [path.name for path in run.glob("*.jsonl")] == ["rounds.jsonl"]
