import io
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benches import Ran
from cells import NODES, quick, small_grid
from rich.console import Console
from safetensors.torch import save_file
from sites import digits_of_sites

from fedsim.errors import UserError
from fedsim.results.rows import Row
from fedsim.results.store import ResultStore
from fedsim.runs import jobs, judging, scheduler
from fedsim.runs.display import LineDisplay
from fedsim.runs.jobs import Reference, references_of
from fedsim.runs.judging import run_judging
from fedsim.training.trial import Trial

Bench = Callable[..., Ran]
JUDGED = ("judged", "referenced", "tested", "label_shares", "accuracy", "knn_balanced_accuracy", "recall_per_class", "ceiling_accuracy")


class Stops(Console):
    """A console on which Ctrl-C is pressed as soon as it shows a text."""

    def __init__(self, text: str) -> None:
        super().__init__(file=io.StringIO(), width=200)
        self.text = text

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **options)
        if any(self.text in str(each) for each in objects):
            # another test of this process may have left a handler of its own
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.raise_signal(signal.SIGINT)


def judge(folder: Path, console: Console | None = None, *, trust_plugin: bool = False) -> Ran:
    console = console or Console(file=io.StringIO(), width=200)
    code = run_judging(folder, NODES, console, nullcontext(), 1, trust_plugin=trust_plugin)
    return Ran(code, console.file.getvalue(), folder)  # type: ignore[attr-defined]


def age(folder: Path) -> None:
    """Make the rows those of a version that judged otherwise: on worse scores, without the newest fields."""
    old = []
    for row in ResultStore(folder).rows():
        fields = row.model_dump() | {"balanced_accuracy": 0.01, "ceiling_balanced_accuracy": 0.02, "local_only_balanced_accuracy": 0.03}
        old.append(Row.model_validate({name: value for name, value in fields.items() if name not in JUDGED}))
    (folder / "results.jsonl").write_text("".join(f"{row.to_json()}\n" for row in old))
    (folder / "clients.jsonl").unlink(missing_ok=True)


def by_cell(ran: Ran) -> dict[str, Row]:
    return {row.cell_id: row for row in ran.rows}


def test_a_run_judged_anew_has_the_rows_that_it_would_have_had(bench: Bench, tmp_path: Path) -> None:
    grid = small_grid(
        *("fedhypevae", "dp-gaussian", "fedavg-cvae"),
        dataset={"npz": str(digits_of_sites(tmp_path)), "overlap": "keep"},
        partition={"scheme": "column", "column": "site"},
        clients=3,
        epsilon=[2.0, float("inf")],
        evaluation={"per_class": 10, "per_client": True, "personal": "synthetic", "readouts": ["knn", "mlp", "fidelity"]},
    )
    ran = bench(grid)
    whole, clients = by_cell(ran), ResultStore(ran.folder).clients()
    assert len(whole) == 5
    age(ran.folder)
    again = judge(ran.folder)
    assert again.code == 0
    assert by_cell(again) == whole
    assert ResultStore(ran.folder).clients() == clients
    assert "5 cells judged anew; balanced accuracy changed in 5" in again.output
    assert '"judged"' in (ran.folder / "manifest.json").read_text()
    # the old rows stay in the file, and a bench takes the new ones for what they are
    assert len((ran.folder / "results.jsonl").read_text().splitlines()) == 10
    assert bench(grid).output.startswith("all 5 cells are finished")
    assert "5 finished cells judged by today's code already" in judge(ran.folder).output


def test_secret_noise_and_feature_shift_are_judged_anew_too(bench: Bench) -> None:
    grid = small_grid("dp-gaussian", partition={"scheme": "feature-shift", "strength": 1.0}, privacy={"noise": "secret"})
    ran = bench(grid)
    whole = by_cell(ran)
    age(ran.folder)
    assert by_cell(judge(ran.folder)) == whole


def test_a_row_without_a_generator_keeps_its_scores_and_stands_beside_the_same_references(bench: Bench) -> None:
    ran = bench(small_grid("dp-gaussian", "fedavg-linear"))
    whole = {row.algorithm: row for row in ran.rows}
    age(ran.folder)
    again = {row.algorithm: row for row in judge(ran.folder).rows}
    assert again["dp-gaussian"] == whole["dp-gaussian"]
    classifier = again["fedavg-linear"]
    assert (classifier.balanced_accuracy, classifier.judged) == (0.01, None)
    assert classifier.ceiling_balanced_accuracy == whole["fedavg-linear"].ceiling_balanced_accuracy
    assert classifier.epsilon_spent == whole["fedavg-linear"].epsilon_spent
    told = "2 finished cells judged by today's code already, but for the scores of 1 without a saved generator"
    assert told in judge(ran.folder).output


def test_the_clients_lines_are_read_once_however_many_rows_need_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = bench(small_grid("dp-gaussian", "fedavg-linear", seeds=[0, 1, 2], evaluation={"per_class": 10, "per_client": True}))
    before = by_cell(ran)
    told = dict.fromkeys(("referenced", "ceiling_balanced_accuracy", "local_only_balanced_accuracy"))
    for row in ran.rows:
        ResultStore(ran.folder).append(row.model_copy(update=told))
    reads, read = [], ResultStore.clients
    monkeypatch.setattr(ResultStore, "clients", lambda store: reads.append(store) or read(store))
    assert by_cell(judge(ran.folder)) == before
    # for three classifiers' rows, and for the report
    assert len(reads) == 2


def test_an_interrupted_judging_goes_on_where_it_stopped(bench: Bench) -> None:
    ran = bench(small_grid("dp-gaussian", seeds=[0, 1, 2]))
    whole = by_cell(ran)
    age(ran.folder)
    stopped = judge(ran.folder, Stops("[1/3]"))
    assert stopped.code == 130
    assert "interrupted: 1 of 3 cells are judged; the same command goes on" in stopped.output
    assert '"judged"' in (ran.folder / "manifest.json").read_text()
    again = judge(ran.folder)
    assert "2 cells judged anew" in again.output
    assert by_cell(again) == whole


def test_what_cannot_be_judged_keeps_its_row_and_the_others_are_judged(bench: Bench) -> None:
    ran = bench(small_grid("dp-gaussian", seeds=[0, 1, 2]))
    first, second, third = ran.rows
    age(ran.folder)
    (ran.folder / "generators" / f"{first.cell_id}.safetensors").write_bytes(b"torn")
    # of another version of the algorithm
    save_file({"server.tensors.other": torch.zeros(3)}, ran.folder / "generators" / f"{second.cell_id}.safetensors")
    again = judge(ran.folder)
    assert again.code == 1
    found = by_cell(again)
    assert found[third.cell_id] == third
    assert [found[row.cell_id].balanced_accuracy for row in (first, second)] == [0.01, 0.01]
    assert again.output.count("keeps its row, it could not be judged") == 2
    assert "1 of 3 cells done, 2 failed in" in again.output


def test_a_generator_whose_facts_are_not_those_that_the_row_has_the_hash_of_is_not_judged(bench: Bench) -> None:
    ran = bench(small_grid("dp-gaussian"))
    age(ran.folder)
    (facts,) = (ran.folder / "generators").glob("*.json")
    facts.write_text(facts.read_text().replace('"claim": "proved"', '"claim": "checked"'))
    again = judge(ran.folder)
    assert again.code == 1
    assert "the row of its cell has another hash" in " ".join(again.output.split())
    assert [row.balanced_accuracy for row in again.rows] == [0.01]
    assert "0 cells judged anew" in again.output
    assert '"judged"' not in (ran.folder / "manifest.json").read_text()


def test_a_reference_that_fails_is_told_with_exit_code_1_and_rows_keep_the_one_that_they_had(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = bench(small_grid("dp-gaussian", "fedavg-linear", evaluation={"per_class": 10, "per_client": True}))
    whole, clients = by_cell(ran), ResultStore(ran.folder).clients()
    for row in ran.rows:
        ResultStore(ran.folder).append(row.model_copy(update={"judged": "old", "referenced": "old"}))

    def of_no_scheme(trial: Trial) -> tuple[Reference, Reference]:
        ceiling, local_only = references_of(trial)
        return ceiling, replace(local_only, spec=None)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "references_of", of_no_scheme)
        again = judge(ran.folder)
    assert again.code == 1
    assert "the local-only reference failed, rows keep the one that they had; the same command tries again" in again.output
    assert "1 cell judged anew" in again.output
    judged = {row.cell_id: row.judged for row in again.rows}
    assert by_cell(again) == {id_: row.model_copy(update={"referenced": "old", "judged": judged[id_]}) for id_, row in whole.items()}
    assert ResultStore(ran.folder).clients() == clients
    again = judge(ran.folder)
    assert again.code == 0
    assert {row.referenced for row in again.rows} == {row.referenced for row in whole.values()}


def test_a_judged_cell_that_waits_for_its_references_holds_no_slot(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = bench(small_grid("dp-gaussian", seeds=[0, 1]))
    age(ran.folder)
    waited = set()

    class Told(LineDisplay):
        def cell_waiting(self, cell_id: str) -> None:
            waited.add(cell_id)
            super().cell_waiting(cell_id)

    monkeypatch.setattr(judging, "make_display", Told)
    monkeypatch.setattr(scheduler, "with_references", lambda *given: reversed(list(jobs.with_references(*given))))
    assert judge(ran.folder).code == 0
    assert waited == set(by_cell(ran))


LEAVES = """
from pathlib import Path

from baselines.dp_gaussian import DPGaussian


class Leaves(DPGaussian):
    def generator(self, *given):
        if Path({mark!r}).exists():
            raise SystemExit("enough")
        return super().generator(*given)
"""


def test_a_generator_that_calls_sys_exit_is_told_as_that(bench: Bench, plugins: Path, tmp_path: Path) -> None:
    mark = tmp_path / "leave"
    (plugins / "leaves.py").write_text(LEAVES.format(mark=str(mark)))
    ran = bench(small_grid({"name": "leaves.py:Leaves"}))
    assert ran.code == 0, ran.output
    age(ran.folder)
    mark.touch()
    again = judge(ran.folder, trust_plugin=True)
    assert again.code == 1
    assert "the algorithm called sys.exit('enough'), which a cell may not" in again.output
    assert "it runs again" not in again.output


def refused(folder: Path) -> str:
    before = (folder / "results.jsonl").read_text()
    with pytest.raises(UserError) as told:
        judge(folder)
    assert (folder / "results.jsonl").read_text() == before
    return str(told.value)


def test_a_run_without_generators_or_with_other_data_says_so_and_writes_nothing(bench: Bench, tmp_path: Path) -> None:
    with np.load(digits_of_sites(tmp_path), allow_pickle=False) as file:
        arrays = dict(file)
    grid = small_grid(quick("dp-gaussian"), dataset={"npz": str(tmp_path / "sites.npz"), "overlap": "keep"})
    kept = bench(grid, "kept").folder
    bare = bench(grid.model_copy(update={"resources": grid.resources.model_copy(update={"save_generators": False})}), "bare").folder
    for folder in (kept, bare):
        age(folder)
    assert "there are no generators of its 1 finished cell; run the grid in a new folder with resources" in refused(bare)
    np.savez(tmp_path / "sites.npz", **arrays | {"x": arrays["x"] * 0.5 + 0.1})
    assert "the content of data set 'sites' is not that of its rows" in refused(kept)
    (kept / "manifest.json").write_text("{}")
    assert "manifest.json: has no grid that this version reads" in refused(kept)
    (kept / "manifest.json").unlink()
    assert "manifest.json: is not there; restore it" in refused(kept)
