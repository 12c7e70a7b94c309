import csv
import json
import math
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rows import ERROR, add_rows, make_failed, make_row

import fedsim
from fedsim.errors import RunLost, UserError
from fedsim.files import replaced
from fedsim.report.report import write_summary
from fedsim.results.columns import COLUMNS, Row
from fedsim.results.run import grid_rows, read_results
from fedsim.results.stats import Settings, Spread, with_ends
from fedsim.results.store import ResultStore

CONTRACT = [
    *("cell_id", "source", "judged", "status", "error", "algorithm", "label", "params", "yields", "dataset", "dataset_hash"),
    *("public", "public_hash", "public_licence", "scheme"),
    *("alpha", "clients", "partition_hash", "train_rows", "train_groups", "seed", "epsilon_target", "epsilon_spent", "delta", "unit"),
    *("relation", "trust", "scope", "claim", "check", "accountant", "noise", "mechanisms"),
    *("tuning", "selection"),
    *("noise_at", "counted_by", "audit_epsilon_lower", "audit_pairs", "audit_canary_ratio"),
    *("audit_params", "evaluation", "unseen", "tested", "label_shares", "accuracy", "balanced_accuracy", "share_of_ceiling", "macro_f1"),
    *("worst_class_recall", "knn_balanced_accuracy", "mlp_balanced_accuracy", "frechet_distance", "squared_mmd", "density", "coverage"),
    *("synthetic_norm", "real_or_synthetic", "client_balanced_accuracy", "client_worst_balanced_accuracy", "client_spread"),
    *("client_shared_balanced_accuracy", "client_local_only_balanced_accuracy", "personal_accuracy", "personal_balanced_accuracy"),
    *("personal_alone_accuracy", "personal_alone_balanced_accuracy", "personal_weight", "recall_per_class", "ceiling_balanced_accuracy"),
    *("ceiling_accuracy", "local_only_balanced_accuracy", "chance", "uplink_bytes", "downlink_bytes", "parameters", "seconds"),
    *("train_seconds", "judge_seconds", "versions", "generator"),
]


def row(cell_id: str = "a", **fields: object) -> Row:
    return make_row(**{"cell_id": cell_id, "label": "alg", "params": {"rounds": 3}, **fields})


def failed(cell_id: str = "a", **fields: object) -> Row:
    return make_failed(**{"cell_id": cell_id, "label": "alg", "params": {"rounds": 3}, **fields})


def test_a_row_has_the_columns_of_the_contract_and_no_other(tmp_path):
    assert list(COLUMNS) == CONTRACT
    add_rows(tmp_path, row())
    read_results(tmp_path).write()
    assert list(json.loads((tmp_path / "results.jsonl").read_text())) == CONTRACT
    with pytest.raises(AttributeError, match="a row has no column 'acuracy'"):
        _ = row().acuracy


def test_any_row_comes_back_from_its_lines(tmp_path):
    rows = [
        row("a", alpha=math.inf, label='{"a": "\u2028"}', params={"beta": [math.inf, None, 0.5]}),
        row("b", epsilon_target=math.inf, epsilon_spent=math.inf, train_groups=3, audit_pairs=100, audit_epsilon_lower=0.5),
        failed("c"),
        row("d", epsilon_target=None),
    ]
    add_rows(tmp_path, *rows)
    for written, read in zip(rows, grid_rows(tmp_path), strict=True):
        assert {name for name in COLUMNS if written.values[name] != read.values[name]} <= {"judge_seconds", "generator"}


def line(reference: str = "a", **fields: object) -> dict[str, object]:
    return {"reference": reference, "kind": "ceiling", **fields}


def test_infinity_on_disk_is_the_word_inf(tmp_path):
    store = ResultStore(tmp_path)
    store.append("references", [line(score=math.inf), line("b", score=None)])
    first, second = [json.loads(text) for text in (tmp_path / "references.jsonl").read_text().splitlines()]
    assert (first["score"], second["score"]) == ("inf", None)
    assert [each["score"] for each in store.references().values()] == [math.inf, None]


def test_a_line_without_the_keys_of_its_kind_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="a line of rounds has training_id, round; round is missing"):
        ResultStore(tmp_path).append("rounds", [{"training_id": "a"}])
    assert not (tmp_path / "rounds.jsonl").exists()


def training(training_id: str, error: dict[str, str] | None = None, **fields: object) -> dict[str, object]:
    return {"training_id": training_id, "cell": {}, "error": error, **fields}


def test_a_training_that_succeeded_stands_before_attempts_that_failed(tmp_path):
    store = ResultStore(tmp_path)
    store.append("trainings", [training("a", ERROR, run=1), training("b", run=1), training("a", run=2), training("b", ERROR, run=2)])
    assert {name: found["run"] for name, found in store.trainings().items()} == {"a": 2, "b": 1}


@pytest.mark.parametrize("kept", [0, 1, 20, -2])
def test_a_torn_last_line_is_ignored_and_cut_before_the_next_append(tmp_path, kept):
    store, path = ResultStore(tmp_path), tmp_path / "references.jsonl"
    store.append("references", [line("a")])
    whole = path.read_bytes()
    path.write_bytes(whole + json.dumps(line("torn")).encode()[:kept])
    assert list(store.references()) == ["a"]
    store.append("references", [line("b")])
    assert path.read_bytes() == whole + json.dumps(line("b")).encode() + b"\n"


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path):
    store, path = ResultStore(tmp_path), tmp_path / "references.jsonl"
    path.write_text(json.dumps(line("a")))
    store.append("references", [line("b")])
    assert list(store.references()) == ["a", "b"]


def test_a_write_that_fails_half_way_leaves_the_file_as_it_was(tmp_path):
    store, path = ResultStore(tmp_path), tmp_path / "references.jsonl"
    store.append("references", [line("a")])
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
    try:
        with pytest.raises(RunLost):
            store.append("references", [line("b")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before


def test_a_log_that_nobody_can_write_ends_the_run(tmp_path):
    store = ResultStore(tmp_path)
    store.folder.log("a").mkdir(parents=True)
    with pytest.raises(RunLost, match=r"a\.log: cannot be written \(is a directory\)"):
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
    (tmp_path / "references.jsonl").write_text(json.dumps(line("a")) + '\n{"kind": "ceiling"}\n')
    with pytest.raises(UserError, match=r"references\.jsonl:2.*reference: Field required"):
        ResultStore(tmp_path).references()


@pytest.mark.parametrize("round_", ["Infinity", "NaN", "null", "[]"])
def test_a_round_without_a_number_is_named(tmp_path, round_):
    (tmp_path / "rounds.jsonl").write_text(f'{{"training_id": "a", "round": {round_}}}\n')
    with pytest.raises(UserError, match=r"rounds\.jsonl:1"):
        ResultStore(tmp_path).rounds()


def rounds(training_id: str, numbers: range, **values: object) -> list[dict[str, object]]:
    return [{"training_id": training_id, "round": number, **values} for number in numbers]


def test_rounds_of_a_training_that_ran_again_replace_the_earlier(tmp_path):
    store = ResultStore(tmp_path)
    for records in (rounds("a", range(5), loss=1.0), rounds("b", range(1), loss=math.inf), rounds("a", range(3), loss=2.0)):
        store.append("rounds", records)
    read = store.rounds()
    assert {name: [each["round"] for each in own] for name, own in read.items()} == {"a": [0, 1, 2], "b": [0]}
    assert [each["loss"] for own in read.values() for each in own] == [2.0, 2.0, 2.0, math.inf]


def test_a_training_that_went_on_from_a_checkpoint_keeps_its_earlier_rounds(tmp_path):
    store = ResultStore(tmp_path)
    store.append("rounds", rounds("a", range(5), run=1))
    store.append("rounds", rounds("a", range(3, 6), run=2))
    assert [each["run"] for each in store.rounds()["a"]] == [1, 1, 1, 2, 2, 2]


def test_diagnostics_may_be_arrays(tmp_path):
    store = ResultStore(tmp_path)
    store.append("rounds", [{"training_id": "a", "round": 1, "norms": np.float32([1, np.inf]), "loss": np.float64(np.nan)}])
    (record,) = store.rounds()["a"]
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
            store.append("references", [line()])
        with pytest.raises(UserError), store.lock():
            pass
        process.kill()
        process.wait()
    with store.lock():
        store.append("references", [line()])
    assert list(store.references()) == ["a"]


def test_a_folder_without_results_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match="there are no results here"):
        fedsim.load(tmp_path)


def stats_of(*values: float, spread: Spread = "ci95") -> pd.Series:
    stats = pd.Series(values).agg(["mean", "std", "min", "max", "count"]).rename({"count": "n"})
    return with_ends(stats.to_frame().T, spread).iloc[0]


def test_the_interval_is_students():
    # Mean 2, s = 1, n = 3: t_{0.975, 2} = 4.302653.
    stats = stats_of(1.0, 2.0, 3.0)
    assert (stats["mean"], stats["half"]) == (2.0, pytest.approx(4.302653 / math.sqrt(3), rel=1e-6))
    assert (stats["low"], stats["high"]) == pytest.approx((2 - stats["half"], 2 + stats["half"]))
    assert math.isnan(stats_of(0.7)["half"])
    assert math.isnan(stats_of(1.0, 2.0)["low"])
    assert tuple(stats_of(1.0, 2.0, spread="range")[["low", "high"]]) == (1.0, 2.0)


def test_equal_values_have_no_interval():
    assert math.isnan(stats_of(0.7, 0.7, 0.7 + 1e-16)["half"])


def test_the_summary_averages_seeds_and_leaves_failed_and_overspent_out(tmp_path):
    rows = [
        row(f"s{seed}", seed=seed, balanced_accuracy=0.5 + seed / 10, epsilon_spent=0.9 + seed / 100, seconds=seed) for seed in range(3)
    ]
    rows += [failed("f", seed=3), row("o", seed=4, status="overspent", epsilon_spent=3.0, balanced_accuracy=1.0)]
    rows += [row("x", alpha=1.0, balanced_accuracy=0.8)]
    path = tmp_path / "summary.csv"
    write_summary(Settings.of(rows), path)
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
    write_summary(Settings.of([row("a", label=label, dataset=label, balanced_accuracy=0.5)]), tmp_path / "summary.csv")
    with (tmp_path / "summary.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["label"], line["dataset"]) == (told := f"'{label}".replace("\r", " "), told)
    assert line["balanced_accuracy_mean"] == "0.5"


def groups(*rows: Row) -> dict[str, list[str]]:
    """The cells of each setting's mean, by label."""
    settings = Settings.of(rows)
    return {settings.facts["label"][setting]: own["cell_id"].tolist() for setting, own in settings.averaged.groupby("setting")}


def test_rows_of_different_parameters_are_never_averaged():
    found = groups(row("a", params={"lr": 0.1, "b": 1}), row("b", params={"lr": 0.2, "b": 1}, seed=1))
    assert found == {"alg (lr=0.1)": ["a"], "alg (lr=0.2)": ["b"]}
    assert list(groups(row("a", params={"lr": None}), row("b", params={"lr": 1}))) == ["alg (lr=None)", "alg (lr=1)"]


@pytest.mark.parametrize(("field", "one", "other"), [("trust", "aggregate", "silo"), ("unit", "example", "client"), ("delta", 1e-4, 1e-5)])
def test_rows_of_different_budgets_are_told_apart_by_their_label(field, one, other):
    assert set(groups(row("a", **{field: one}), row("b", **{field: other}, seed=1))) == {f"alg ({field}={one})", f"alg ({field}={other})"}


def test_rows_of_two_public_data_sets_are_never_in_one_mean():
    rows = [row(name, public=name, public_hash=name, seed=seed) for seed, name in enumerate(("blood", "organ"))]
    assert list(groups(*rows)) == ["alg (public=blood)", "alg (public=organ)"]


@pytest.mark.parametrize(("field", "one", "other"), [("dataset_hash", "12", "34"), ("evaluation", {"per_class": 3}, {"per_class": 200})])
def test_rows_of_data_of_other_content_or_of_another_evaluation_are_never_averaged(field, one, other):
    settings = Settings.of([row("a", **{field: one}), row("b", **{field: other}, seed=1)])
    assert settings.rows["setting"].nunique() == 2


def test_a_seed_counts_once_with_its_last_row():
    rows = [row("a", balanced_accuracy=0.6), row("b", balanced_accuracy=0.7), row("c", seed=1, balanced_accuracy=0.9)]
    assert groups(*rows) == {"alg": ["b", "c"]}
    assert Settings.of(rows).mean("balanced_accuracy").tolist() == pytest.approx([0.8])


@pytest.mark.parametrize(
    ("worse", "fields"),
    [
        ("none", {"claim": "none"}),
        ("heuristic", {"claim": "heuristic"}),
        ("stated", {"claim": "stated"}),
        ("heuristic", {"check": "failed"}),
    ],
)
def test_a_mean_has_the_weakest_claim_of_its_rows(worse, fields):
    (facts,) = Settings.of([row("a"), row("b", seed=1, **fields), failed("c", seed=2)]).facts.to_dict("records")
    assert [facts[name] for name in ("claim", "scope", "seeds", "failed")] == [worse, "joint", 2, 1]


def test_settings_come_by_partition_then_label_then_epsilon():
    budgets = (math.inf, 4.0, 1.0, None)
    rows = [
        row(f"{alpha}{label}{epsilon}", alpha=alpha, label=label, epsilon_target=epsilon, epsilon_spent=None)
        for alpha in (1.0, 0.1)
        for label in ("z", "a")
        for epsilon in budgets
    ]
    told = Settings.of(rows).facts[["alpha", "label", "epsilon_target"]].fillna(-1.0).to_numpy().tolist()
    ordered = (1.0, 4.0, math.inf, -1.0)
    assert told == [[alpha, label, epsilon] for alpha in (0.1, 1.0) for label in ("z", "a") for epsilon in ordered]
