import csv
import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedsim.atomic import replaced
from fedsim.errors import RunLost, UserError
from fedsim.results.grid_rows import load_results
from fedsim.results.groups import Interval, group_seeds
from fedsim.results.rows import Row
from fedsim.results.store import ResultStore
from fedsim.results.summary import write_summary

CONTRACT = [
    *(
        "cell_id",
        "source",
        "judged",
        "referenced",
        "status",
        "error",
        "algorithm",
        "label",
        "params",
        "yields",
        "dataset",
    ),
    *(
        "dataset_hash",
        "scheme",
        "alpha",
        "clients",
        "partition_hash",
        "train_rows",
        "train_groups",
        "seed",
        "epsilon_target",
    ),
    *(
        "epsilon_spent",
        "delta",
        "unit",
        "relation",
        "trust",
        "scope",
        "claim",
        "accountant",
    ),
    *(
        "noise",
        "sigma",
        "sample_rate",
        "steps",
        "clip",
        "sensitivity",
        "mechanisms",
        "noise_at",
        "counted_by",
        "audit_epsilon_lower",
        "audit_epsilon_any",
        "audit_method",
        "audit_pairs",
        "audit_canary_ratio",
        "audit_params",
        "evaluation",
        "unseen",
        "tested",
        "label_shares",
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "worst_class_recall",
        "knn_balanced_accuracy",
        "mlp_balanced_accuracy",
        "frechet_distance",
        "squared_mmd",
        "density",
        "coverage",
        "real_or_synthetic",
        "client_balanced_accuracy",
        "client_worst_balanced_accuracy",
        "client_spread",
        "client_shared_balanced_accuracy",
        "client_local_only_balanced_accuracy",
        "personal_accuracy",
        "personal_balanced_accuracy",
        "personal_alone_accuracy",
        "personal_alone_balanced_accuracy",
        "personal_weight",
    ),
    *(
        "recall_per_class",
        "ceiling_balanced_accuracy",
        "ceiling_accuracy",
        "local_only_balanced_accuracy",
        "chance",
        "uplink_bytes",
        "seconds",
        "versions",
        "generator",
    ),
]
ERROR = {"type": "ValueError", "message": "no", "traceback": "Traceback ..."}


def row(cell_id: str = "a", **fields: object) -> Row:
    base = {
        "cell_id": cell_id,
        "status": "ok",
        "algorithm": "alg",
        "label": "alg",
        "params": {"rounds": 3},
        "dataset": "digits",
        "scheme": "dirichlet",
        "alpha": 0.1,
        "clients": 10,
        "seed": 0,
        "epsilon_target": 1.0,
        "epsilon_spent": 0.99,
        "delta": 1e-4,
        "unit": "example",
        "trust": "aggregate",
        "scope": "joint",
        "claim": "proved",
        "accuracy": 0.5,
        "balanced_accuracy": 0.5,
        "macro_f1": 0.5,
        "ceiling_balanced_accuracy": 0.9,
        "local_only_balanced_accuracy": 0.4,
        "chance": 0.1,
        "seconds": 2.0,
    }
    return Row.model_validate(base | fields)


def failed(cell_id: str = "a", **fields: object) -> Row:
    none = dict.fromkeys(["accuracy", "balanced_accuracy", "macro_f1", "epsilon_spent", "scope", "claim"])
    return row(cell_id, status="failed", error=ERROR, **none | fields)


def test_a_row_whose_claim_an_audit_refutes_is_not_ok():
    facts = {"epsilon_target": 4.0, "audit_epsilon_lower": 4.5, "audit_epsilon_any": 2.0, "audit_pairs": 100}
    assert row(status="refuted", **facts).status == "refuted"
    with pytest.raises(ValidationError, match=r"one below 4\.5 is refuted"):
        row(**facts)


def test_a_row_has_the_fields_of_the_contract_and_no_other():
    assert Row.columns() == CONTRACT
    assert list(json.loads(row().to_json())) == CONTRACT
    with pytest.raises(ValidationError, match="acuracy"):
        row(acuracy=0.5)


def test_a_row_that_an_older_fedsim_wrote_with_an_epsilon_under_replace_one_is_read_without_it(tmp_path):
    line = json.dumps(json.loads(row().to_json()) | {"epsilon_spent_replace_one": 2.6})
    (tmp_path / "results.jsonl").write_text(line + "\n")
    assert ResultStore(tmp_path).rows() == [row()]


def test_a_row_can_be_told_without_some_of_its_fields():
    told = row().model_dump(exclude={"claim", "seconds"})
    assert list(told) == [name for name in CONTRACT if name not in ("claim", "seconds")]
    assert row().model_dump(include={"label"}) == {"label": "alg"}


@pytest.mark.parametrize(
    "fields",
    [
        {"error": ERROR},
        {"status": "failed"},
        {"balanced_accuracy": None},
        {"epsilon_spent": 1.01},
        *({name: math.nan} for name in ("epsilon_target", "epsilon_spent", "audit_epsilon_lower", "delta", "sigma", "chance")),
    ],
    ids=lambda fields: ", ".join(f"{name} {value}" for name, value in fields.items()),
)
def test_a_row_that_contradicts_itself_is_refused(fields):
    with pytest.raises(ValidationError):
        row(**fields)


numbers = st.one_of(st.none(), st.floats(allow_nan=False), st.just(math.inf))


@settings(max_examples=60)
@given(sigma=numbers, alpha=numbers, label=st.text(max_size=8), param=st.one_of(numbers, st.lists(numbers, max_size=3)))
def test_any_row_comes_back_from_its_line(sigma, alpha, label, param):
    written = row(sigma=sigma, alpha=alpha, label=label, params={"beta": param})
    line = written.to_json()
    assert "\n" not in line
    assert Row.from_json(line) == written


def test_infinity_on_disk_is_the_word_inf(tmp_path):
    store = ResultStore(tmp_path)
    store.append(row(epsilon_target=math.inf, epsilon_spent=math.inf))
    store.append(row("b", epsilon_target=None, epsilon_spent=None))
    first, second = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert (first["epsilon_target"], second["epsilon_target"]) == ("inf", None)
    assert [each.epsilon_target for each in store.rows()] == [math.inf, None]


def test_a_label_that_reads_like_a_number_stays_a_label(tmp_path):
    ResultStore(tmp_path).append(row(label="inf"))
    assert ResultStore(tmp_path).rows()[0].label == "inf"


def test_a_later_row_of_a_cell_replaces_the_earlier(tmp_path):
    store = ResultStore(tmp_path)
    for each in (failed("a"), row("b"), failed("c"), row("a")):
        store.append(each)
    store.append(row("d", status="overspent", epsilon_spent=1.5))
    assert [each.cell_id for each in store.rows()] == ["b", "c", "a", "d"]
    assert store.finished() == {"a", "b", "d"}
    assert store.failed() == {"c"}
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize("kept", [0, 1, 50, -2])
def test_a_torn_last_line_is_ignored_and_cut_before_the_next_append(tmp_path, kept):
    store, path = ResultStore(tmp_path), tmp_path / "results.jsonl"
    store.append(row("a"))
    whole = path.read_bytes()
    path.write_bytes(whole + row("torn").to_json().encode()[:kept])
    assert [each.cell_id for each in store.rows()] == ["a"]
    store.append(row("b"))
    assert path.read_bytes() == whole + row("b").to_json().encode() + b"\n"


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path):
    store, path = ResultStore(tmp_path), tmp_path / "results.jsonl"
    path.write_text(row("a").to_json())
    store.append(row("b"))
    assert [each.cell_id for each in store.rows()] == ["a", "b"]


def test_a_write_that_fails_half_way_leaves_the_file_as_it_was(tmp_path):
    store = ResultStore(tmp_path)
    store.append(row("a"))
    before = store.folder.results.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
    try:
        with pytest.raises(RunLost):
            store.append(row("b"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.folder.results.read_bytes() == before


def test_a_log_that_nobody_can_write_ends_the_run_and_does_not_wait(tmp_path):
    store = ResultStore(tmp_path)
    (tmp_path / "logs").mkdir()
    os.mkfifo(store.folder.log("a"))
    with pytest.raises(RunLost, match=r"a\.log: cannot be written \(no such device or address\)"):
        store.log("a", ["a line"])
    store.log("b", ["a line"])
    assert store.folder.log("b").read_text() == "a line\n"


def test_a_file_that_cannot_be_replaced_is_told_by_its_own_name(tmp_path):
    store = ResultStore(tmp_path)
    store.folder.manifest.mkdir()
    with pytest.raises(RunLost) as told, store.lock(), replaced(store.folder.manifest) as part:
        part.write_text("new")
    assert told.value.where == str(store.folder.manifest)


def test_a_broken_line_elsewhere_is_named(tmp_path):
    store, path = ResultStore(tmp_path), tmp_path / "results.jsonl"
    path.write_text(row("a").to_json() + '\n{"cell_id": "b"}\n')
    with pytest.raises(UserError, match=r"results\.jsonl:2.*Field required"):
        store.rows()


@pytest.mark.parametrize("round_", ["Infinity", "NaN", "null", "[]"])
def test_a_round_without_a_number_is_named(tmp_path, round_):
    (tmp_path / "rounds.jsonl").write_text(f'{{"cell_id": "a", "round": {round_}}}\n')
    with pytest.raises(UserError, match=r"rounds\.jsonl:1"):
        ResultStore(tmp_path).rounds()


CLIENT = {"cell_id": "a", "client": 0, "name": "0", "own_balanced_accuracy": 0.5, "shared_balanced_accuracy": None}


@pytest.mark.parametrize(
    "fields", [{"client": "0"}, {"client": [0]}, {"name": 0}, {"own_balanced_accuracy": {}}, {"shared_balanced_accuracy": "0.5"}], ids=str
)
def test_a_clients_line_that_no_bench_writes_is_named(tmp_path, fields):
    (tmp_path / "clients.jsonl").write_text(json.dumps(CLIENT) + "\n" + json.dumps(CLIENT | fields) + "\n")
    with pytest.raises(UserError, match=rf"clients\.jsonl:2.*{next(iter(fields))}"):
        ResultStore(tmp_path).clients()
    (tmp_path / "clients.jsonl").write_text(json.dumps(CLIENT))
    assert ResultStore(tmp_path).clients() == [CLIENT]


def test_rounds_of_a_cell_that_ran_again_replace_the_earlier(tmp_path):
    store = ResultStore(tmp_path)
    store.append_rounds([{"cell_id": "a", "round": r, "loss": 1.0} for r in range(5)])
    store.append_rounds([{"cell_id": "b", "round": 0, "loss": math.inf}])
    store.append_rounds([{"cell_id": "a", "round": r, "loss": 2.0} for r in range(3)])
    read = store.rounds()
    assert [(each["cell_id"], each["round"]) for each in read] == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]
    assert [each["loss"] for each in read] == [2.0, 2.0, 2.0, math.inf]


def test_a_cell_that_went_on_from_a_checkpoint_keeps_its_earlier_rounds(tmp_path):
    store = ResultStore(tmp_path)
    store.append_rounds([{"cell_id": "a", "round": r, "run": 1} for r in range(5)])
    store.append_rounds([{"cell_id": "a", "round": r, "run": 2} for r in range(3, 6)])
    assert [each["run"] for each in store.rounds()] == [1, 1, 1, 2, 2, 2]


def test_diagnostics_may_be_arrays(tmp_path):
    store = ResultStore(tmp_path)
    store.append_rounds([{"cell_id": "a", "round": np.int64(1), "norms": np.float32([1, np.inf]), "loss": np.float64(np.nan)}])
    record = store.rounds()[0]
    assert record["norms"] == [1.0, math.inf]
    assert math.isnan(record["loss"])


def test_only_one_process_holds_a_folder(tmp_path):
    holder = "\n".join(
        [
            "import sys",
            "from fedsim.results.store import ResultStore",
            f"with ResultStore({str(tmp_path)!r}).lock():",
            "    print('held', flush=True)",
            "    sys.stdin.read()",
        ]
    )
    store = ResultStore(tmp_path)
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {process.pid}, is running in this folder"):
            store.append(row())
        with pytest.raises(UserError), store.lock():
            pass
        process.kill()
        process.wait()
    with store.lock():
        store.append(row())
    assert store.finished() == {"a"}


def test_load_results_gives_a_column_for_every_field(tmp_path):
    store = ResultStore(tmp_path)
    for each in (row("a", epsilon_target=math.inf, epsilon_spent=math.inf), failed("b"), row("c", epsilon_target=None)):
        store.append(each)
    frame = load_results(tmp_path)
    assert list(frame.columns) == CONTRACT
    assert frame["epsilon_target"].tolist()[:2] == [math.inf, 1.0]
    assert frame["epsilon_target"].isna().tolist() == [False, False, True]
    assert str(frame["steps"].dtype) == str(frame["accuracy"].dtype) == "float64"


def test_load_results_of_a_folder_without_any_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match=r"no results\.jsonl"):
        load_results(tmp_path)


def test_the_interval_is_students():
    # Mean 2, s = 1, n = 3: t_{0.975, 2} = 4.302653.
    interval = Interval.of([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert Interval.of([0.7]) == Interval(0.7, None, 1)


def test_equal_values_have_no_interval():
    assert Interval.of([0.7, 0.7, 0.7 + 1e-16]) == Interval(pytest.approx(0.7), None, 3)


def test_the_summary_averages_seeds_and_leaves_failed_and_overspent_out(tmp_path):
    rows = [
        row(f"s{seed}", seed=seed, balanced_accuracy=0.5 + seed / 10, epsilon_spent=0.9 + seed / 100, seconds=seed) for seed in range(3)
    ]
    rows += [failed("f", seed=3), row("o", seed=4, status="overspent", epsilon_spent=3.0, balanced_accuracy=1.0)]
    rows += [row("x", alpha=1.0, balanced_accuracy=0.8)]
    path = tmp_path / "summary.csv"
    write_summary(group_seeds(rows), path)
    frame = pd.read_csv(path)
    assert frame["seeds"].tolist() == [3, 1]
    assert frame.loc[0, ["failed", "overspent"]].tolist() == [1, 1]
    assert frame["balanced_accuracy_mean"].tolist() == pytest.approx([0.6, 0.8])
    assert frame.loc[0, "balanced_accuracy_ci95"] == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert math.isnan(frame.loc[1, "balanced_accuracy_ci95"])
    assert frame.loc[0, "epsilon_spent_max"] == pytest.approx(0.92)
    assert frame.loc[0, "seconds"] == 1.0
    assert [path.name for path in Path(tmp_path).iterdir()] == ["summary.csv"]


@pytest.mark.parametrize("label", ['=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_text_of_the_summary_is_a_formula(tmp_path, label):
    write_summary(group_seeds([row("a", label=label, dataset=label, balanced_accuracy=0.5)]), tmp_path / "summary.csv")
    with (tmp_path / "summary.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["label"], line["dataset"]) == (told := f"'{label}".replace("\r", " "), told)
    assert line["balanced_accuracy_mean"] == "0.5"


def test_rows_of_different_parameters_are_never_averaged():
    groups = group_seeds([row("a", params={"lr": 0.1, "b": 1}), row("b", params={"lr": 0.2, "b": 1}, seed=1)])
    assert [(group.label, len(group.rows)) for group in groups] == [("alg (lr=0.1)", 1), ("alg (lr=0.2)", 1)]
    groups = group_seeds([row("a", params={"lr": None}), row("b", params={"lr": 1})])
    assert [group.label for group in groups] == ["alg (lr=None)", "alg (lr=1)"]


@pytest.mark.parametrize(("field", "one", "other"), [("trust", "aggregate", "silo"), ("unit", "example", "client"), ("delta", 1e-4, 1e-5)])
def test_rows_of_different_budgets_are_told_apart_by_their_label(field, one, other):
    groups = group_seeds([row("a", **{field: one}), row("b", **{field: other}, seed=1)])
    assert {group.label for group in groups} == {f"alg ({field}={one})", f"alg ({field}={other})"}


@pytest.mark.parametrize(("field", "one", "other"), [("dataset_hash", "12", "34"), ("evaluation", {"per_class": 3}, {"per_class": 200})])
def test_rows_of_data_of_other_content_or_of_another_evaluation_are_never_averaged(field, one, other):
    groups = group_seeds([row("a", **{field: one}), row("b", **{field: other}, seed=1)])
    assert [[each.cell_id for each in group.rows] for group in groups] == [["a"], ["b"]]


def test_a_seed_counts_once_with_its_last_row():
    (group,) = group_seeds([row("a", balanced_accuracy=0.6), row("b", balanced_accuracy=0.7), row("c", seed=1, balanced_accuracy=0.9)])
    assert [each.cell_id for each in group.rows] == ["b", "c"]
    assert group.mean("balanced_accuracy") == pytest.approx(0.8)


def test_a_mean_has_the_weakest_claim_of_its_rows():
    (group,) = group_seeds([row("a"), row("b", seed=1, claim="heuristic"), failed("c", seed=2)])
    assert (group.claim, group.scope, len(group.rows), group.failed) == ("heuristic", "joint", 2, 1)


def test_groups_come_by_partition_then_label_then_epsilon():
    budgets = (math.inf, 4.0, 1.0, None)
    rows = [
        row(f"{alpha}{label}{epsilon}", alpha=alpha, label=label, epsilon_target=epsilon, epsilon_spent=None)
        for alpha in (1.0, 0.1)
        for label in ("z", "a")
        for epsilon in budgets
    ]
    told = [(group.alpha, group.label, group.epsilon_target) for group in group_seeds(rows)]
    ordered = (1.0, 4.0, math.inf, None)
    assert told == [(alpha, label, epsilon) for alpha in (0.1, 1.0) for label in ("z", "a") for epsilon in ordered]


def test_load_results_is_of_the_grid_that_ran_last_and_without_a_manifest_of_the_last_evaluation(tmp_path):
    store = ResultStore(tmp_path)
    for cell_id, per_class in (("a", 200), ("b", 3), ("c", 3)):
        store.append(row(cell_id, evaluation={"per_class": per_class}))
    assert load_results(tmp_path)["cell_id"].tolist() == ["b", "c"]
    (tmp_path / "manifest.json").write_text(json.dumps({"cells": [{"cell_id": "a", "label": "renamed"}]}))
    assert load_results(tmp_path)[["cell_id", "label"]].to_numpy().tolist() == [["a", "renamed"]]
