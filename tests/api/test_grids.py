import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from benches import PATIENCE, Done, interruptible
from plug_ins import GOOD, changed, write

import fedsim
from fedsim.grid.read import load_grid
from fedsim.results.store import ResultStore

FEDSIM = Path(sys.executable).with_name("fedsim")
SMALL = {"dataset": {"name": "digits", "limit": 200}, "clients": 4, "alpha": 1.0, "evaluation": {"per_class": 10}}
FOUR = """
algorithms: [{name: weight-noise, params: {rounds: 2, local_steps: 5}}, {name: fedhypevae, params: {rounds: 10}}]
clients: [4]
epsilon: [4]
seeds: [0, 1]
evaluation: {per_class: 30}
"""
KEPT = ("trainings.jsonl", "judgements.jsonl", "references.jsonl")
"""Files in which a line is never changed again."""


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def kept(run: Path) -> dict[str, list[str]]:
    return {name: lines(run / name) for name in KEPT}


@pytest.fixture
def started(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A bench in a process group of its own, as a terminal starts it; it does not outlive the test."""
    (tmp_path / "small.yaml").write_text(FOUR)
    command = [FEDSIM, "bench", "small.yaml", "--in-process"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True, process_group=0, preexec_fn=interruptible)
    while len(lines(tmp_path / "runs/small/judgements.jsonl")) < 1:
        assert process.poll() is None, process.communicate()
        os.sched_yield()
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


def test_a_path_and_a_mapping_are_the_same_grid_and_a_mapping_stays_as_it_is(folder: Path) -> None:
    (folder / "g.yaml").write_text("algorithms: [dp-gaussian]\nclients: 4\nevaluation: {per_class: 10}\n")
    of_file = load_grid("g.yaml", {"evaluation.probe_c": 1.0, "epsilon": [1, float("inf")]}, ["dp-linear"])
    written = {"name": "g", "algorithms": ["dp-gaussian"], "clients": 4, "evaluation": {"per_class": 10}}
    before = json.dumps(written)
    assert of_file == load_grid(written, {"evaluation.probe_c": 1.0, "epsilon": [1, float("inf")]}, ["dp-linear"])
    assert json.dumps(written) == before


@pytest.mark.parametrize(
    ("grid", "replaced", "says"),
    [
        ({"algorithms": ["dp-gaussian"], "epsilonn": 1}, {}, r"^epsilonn: .*did you mean 'epsilon'"),
        ({"algorithms": ["dp-gaussian"]}, {"epsilon": [1, -1]}, r"^set epsilon\[1\]: .*greater than 0"),
        ("nowhere.yaml", {}, r"^nowhere.yaml: cannot be read .no such file or directory.; give the path of a YAML file"),
    ],
)
def test_a_mistake_is_an_exception_and_nothing_is_written(folder: Path, grid: object, replaced: dict[str, object], says: str) -> None:
    with pytest.raises(fedsim.UserError, match=says):
        fedsim.bench(grid, set=replaced, in_process=True)  # type: ignore[arg-type]
    assert list(folder.iterdir()) == []


def test_a_grid_of_many_cells_is_resolved_once_it_is_confirmed(folder: Path, command: Callable[..., Done]) -> None:
    (folder / "g.yaml").write_text("algorithms: ['nobody:Knows']\nseeds: 0-999\nepsilon: [1, 2, 4]\nalpha: [1, 2]\n")
    done = command("bench", "g.yaml", "--dry-run")
    said = "fedsim: g.yaml: stands for up to 6,000 cells; give --yes to run more than 5,000, or fewer values\n"
    assert (done.returncode, done.stderr) == (2, said)
    assert "'nobody:Knows' cannot be imported" in command("bench", "g.yaml", "--dry-run", "--yes").stderr


MISTAKES = {
    "unknown key": ("algorithms: [fedhypevae]\nepsilonn: [1]\n", "g.yaml:2", "epsilon"),
    "more clients than the data allow": ("algorithms: [fedhypevae]\nclients: [100000]\n", "clients[0]", "100000"),
    "a plug-in that leaves": ("algorithms: ['leave.py:X']\n", "algorithms[0]", "SystemExit: 3"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_file_is_one_line_with_its_place(folder: Path, command: Callable[..., Done], mistake: str) -> None:
    text, place, right = MISTAKES[mistake]
    (folder / "g.yaml").write_text(text)
    (folder / "leave.py").write_text("import sys\nsys.exit(3)\n")
    done = command("bench", "--grid", "g.yaml")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert place in done.stderr
    assert right in done.stderr
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {"g.yaml", "leave.py"}


def test_an_interruption_is_raised_and_the_next_one_is_heard_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)

    def interrupted(*args: object, **how: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the first one leaves it for an orderly end
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsim.runs.bench.Scheduler.run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fedsim.bench(SMALL, algorithms=["dp-gaussian"], out=folder / "run", in_process=True)
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    run = fedsim.bench(SMALL, algorithms=["dp-gaussian"], out=folder / "run", in_process=True)
    assert run.rows["status"].tolist() == ["ok"]  # type: ignore[union-attr]


def test_a_dry_run_has_cells_noise_partitions_memory_and_time_and_writes_nothing(folder: Path, command: Callable[..., Done]) -> None:
    grid = SMALL | {"algorithms": ["dp-gaussian", {"name": "fedavg-linear", "params": {"rounds": 2}}], "epsilon": [1, 4]}
    plan = fedsim.bench(grid, dry_run=True)
    assert plan.cells["algorithm"].tolist() == ["dp-gaussian", "dp-gaussian", "fedavg-linear"]  # type: ignore[union-attr]
    assert plan.cells["σ"].notna().tolist() == [True, True, False]  # type: ignore[union-attr]
    means = plan.noise.query("part == 'class means'").set_index("ε")["noise / signal"]  # type: ignore[union-attr]
    assert means[1] > 2 * means[4]
    assert plan.partitions.groupby("seed")["rows"].sum().tolist() == [200]  # type: ignore[union-attr]
    (folder / "g.yaml").write_text(json.dumps(grid | {"delta": 0.01}))
    done = command("bench", "g.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("proved") == 2
    assert "warning: δ = 0.01 is not below 1/n = 0.005 for the 200 training rows" in done.stdout
    for said in ("0.0 MiB once a machine", "time: not known before a cell of dp-gaussian, fedavg-linear", "nothing was run"):
        assert said in done.stdout
    assert [path.name for path in folder.iterdir()] == ["g.yaml"]


def test_classes_without_a_test_row_are_warned_of(folder: Path, command: Callable[..., Done]) -> None:
    y = np.arange(120) % 3
    np.savez(folder / "d.npz", x=np.random.default_rng(0).random((120, 4)), y=y, split=np.where((y == 1) & (np.arange(120) < 60), 2, 0))
    (folder / "g.yaml").write_text("algorithms: [dp-gaussian]\nclients: 2\ndataset: {npz: d.npz, name: mine}\n")
    done = command("bench", "g.yaml", "--dry-run")
    assert "warning: mine has no test row of 2 of its 3 classes (0, 2): balanced accuracy is over the others" in done.stdout


def test_a_name_that_cannot_be_written_down_and_a_folder_in_use_are_refused(folder: Path, command: Callable[..., Done]) -> None:
    for name in ("g.yaml", "g\udcff.yaml"):
        (folder / name).write_text("algorithms: [no-such-algorithm]\n")  # which preparing would tell
    assert "is no path in UTF-8" in command("bench", "g.yaml", "--out", "runs/\udcff").stderr
    assert "unable to parse raw data as a unicode string" in command("bench", "g\udcff.yaml").stderr
    with ResultStore(folder / "runs" / "g").lock():
        assert f"fedsim, process {os.getpid()}, is running in this folder; wait for it or stop it" in command("bench", "g.yaml").stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_bench_that_is_interrupted_or_killed_goes_on_by_the_same_command(
    tmp_path: Path, started: subprocess.Popen[str], number: signal.Signals, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Done]
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
    assert {name: after[name][: len(before[name])] for name in KEPT} == before
    assert {name: len(after[name]) for name in KEPT} == {"trainings.jsonl": 4, "judgements.jsonl": 4, "references.jsonl": 3}


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


@pytest.mark.slow
def test_a_bench_in_process_stops_at_breakpoints_starts_nothing_and_gives_the_rows_that_it_gives_on_ray(
    folder: Path, command: Callable[..., Done]
) -> None:
    (folder / "stops.py").write_text(STOPS)
    grid = {"algorithms": ["stops.py:Stops", {"name": "fedhypevae", "params": {"rounds": 3}}]} | SMALL
    (folder / "g.yaml").write_text(json.dumps(grid))
    bench = [FEDSIM, "bench", "--grid", "g.yaml", "--out"]
    process = subprocess.Popen([*bench, "here", "--in-process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate("p type(self).__name__\nc\n" * 8, timeout=PATIENCE)
    assert process.returncode == 0, out
    assert f"in process {process.pid}, which started []" in out
    assert "(Pdb) 'Stops'" in out
    on_ray = subprocess.run(
        [*bench, "there"], capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, "PYTHONBREAKPOINT": "0"}
    )
    assert on_ray.returncode == 0, on_ray.stdout + on_ray.stderr
    assert command("verify", "here", "--with", "there").returncode == 0


def test_plug_ins_that_are_refused_stop_a_bench_and_with_keep_going_the_rest_runs(folder: Path, command: Callable[..., Done]) -> None:
    (folder / "below").mkdir()
    write(folder, "raises", "raise RuntimeError('half [red]written[/]')\n")
    write(folder / "below", "good", GOOD)
    write(folder, "batch_loss", changed("unit * gaussian_nll(batch.x, decoded, log_variance),", "unit.sum(),"))
    names = [f"{stem}.py:MyMethod" for stem in ("raises", "batch_loss", "below/good")]
    entries = [{"name": name, "params": {} if "raises" in name else {"rounds": 3}} for name in names]
    (folder / "g.yaml").write_text(json.dumps(SMALL | {"algorithms": entries, "epsilon": 4}))
    stopped = command("bench", "g.yaml", "--in-process")
    assert (stopped.returncode, stopped.stdout, len(stopped.stderr.splitlines())) == (2, "", 1)
    assert "raises.py:1: RuntimeError: half [red]written[/]" in stopped.stderr
    went_on = command("bench", "g.yaml", "--in-process", "--keep-going")
    assert (went_on.returncode, went_on.stderr) == (1, ""), went_on.stdout
    rows = [json.loads(line) for line in lines(folder / "runs/g/results.jsonl")]
    assert {row["label"]: row["status"] for row in rows} == {names[1]: "failed", names[2]: "ok"}
    refused = json.loads((folder / "runs/g/manifest.json").read_text())["refused"]
    assert [each["algorithm"] for each in refused] == names[:1]


def test_the_path_of_a_plug_in_is_relative_to_its_grid_and_its_label_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "grids").mkdir()
    (folder / "beside_grid.py").write_text(GOOD)
    (folder / "grids" / "in_grids.py").write_text(GOOD)
    (folder / "grids" / "g.yaml").write_text("algorithms: [in_grids.py:MyMethod, ../beside_grid.py:MyMethod]\n")
    entries = load_grid(folder / "grids" / "g.yaml").algorithms
    assert [entry.name for entry in entries] == ["grids/in_grids.py:MyMethod", "beside_grid.py:MyMethod"]
    assert [entry.display for entry in entries] == ["in_grids.py:MyMethod", "../beside_grid.py:MyMethod"]
    with pytest.raises(fedsim.UserError, match=r"no file 'grids/beside_grid.py'; a grid file gives its path from its own folder"):
        fedsim.bench("grids/g.yaml", set={"algorithms": ["beside_grid.py:MyMethod"]}, dry_run=True)


def test_what_an_output_s_encoding_lacks_is_a_question_mark(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(json.dumps(SMALL | {"algorithms": ["dp-gaussian"]}))
    command, latin = [FEDSIM, "bench", "small.yaml", "--dry-run"], {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, cwd=tmp_path, env=latin, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert b"?" in done.stdout
