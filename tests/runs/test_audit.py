"""Audits of a grid's claims: beside its cells, on the same slots, kept as they come, and in every
row of the claim.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from benches import Done, Ran
from cells import NODES, SMALL, quick, small_grid

from fedsim.errors import UserError
from fedsim.results.generators import load_generator
from fedsim.results.store import KINDS, ResultStore, RunFolder
from fedsim.runs.plan_view import Plan
from fedsim.runs.prepare import prepare
from fedsim.runs.side_jobs import claim_audits

AUDIT = {"pairs": 40, "rounds": 1}
REFUTES = {"pairs": 100, "rounds": 1}


def test_every_result_of_a_claim_shows_its_audit_which_runs_once(
    bench: Callable[..., Ran],
) -> None:
    grid = small_grid(
        "dp-gaussian", "fedavg-linear", epsilon=[4.0, float("inf")], seeds=[0, 1], audit=AUDIT
    )
    first = bench(grid)
    assert first.code == 0
    rows = {(row.label, row.epsilon_target, row.seed): row for row in first.rows}
    audited = [rows["dp-gaussian", 4.0, seed] for seed in (0, 1)]
    assert {row.audit_pairs for row in audited} == {40}
    assert all(row.audit_params == {} for row in audited)
    assert all(row.audit_canary_ratio == pytest.approx(1, abs=1e-4) for row in audited)
    assert all(
        row.audit_epsilon_lower is not None and row.audit_epsilon_lower <= 4 for row in audited
    )
    assert {row.audit_pairs for row in first.rows if row not in audited} == {None}
    assert "all 6 cells are finished" in bench(grid).output


def test_a_bench_that_asks_for_fewer_pairs_audits_nothing(bench: Callable[..., Ran]) -> None:
    folder = RunFolder(bench(small_grid("dp-gaussian", epsilon=4.0, audit=AUDIT)).folder)
    lines = folder.lines("audits").read_bytes()
    fewer = bench(small_grid("dp-gaussian", epsilon=4.0, audit=AUDIT | {"pairs": 6}))
    assert folder.lines("audits").read_bytes() == lines
    assert fewer.rows[0].audit_pairs == 40


def test_an_interrupted_audit_goes_on_from_its_pairs(
    bench: Callable[..., Ran], tmp_path: Path
) -> None:
    grid = small_grid("dp-gaussian", epsilon=4.0, audit=AUDIT)
    whole = bench(grid).rows
    folder = RunFolder(tmp_path / "run")
    lines = folder.lines("pairs").read_text().splitlines(keepends=True)
    assert len(lines) == 40
    # the last line is torn, and the outcome was never written
    folder.lines("pairs").write_text("".join(lines[:21])[:-9])
    folder.lines("audits").unlink()
    assert bench(grid).rows == whole
    assert folder.lines("pairs").read_text().splitlines(keepends=True) == lines


@pytest.mark.slow
def test_audit_added_later_changes_no_line_and_refutes_a_claim(
    bench: Callable[..., Ran],
) -> None:
    grid = small_grid(
        quick("plugin:Optimist", rounds=1), "dp-gaussian", epsilon=[4.0, float("inf")], seeds=[0, 1]
    )
    first = bench(grid)
    assert (first.code, {row.status for row in first.rows}) == (0, {"ok"})
    before = {
        kind: path.read_bytes()
        for kind in KINDS
        if (path := RunFolder(first.folder).lines(kind)).exists()
    }
    audited = bench(
        small_grid(
            quick("plugin:Optimist", rounds=1),
            "dp-gaussian",
            epsilon=[4.0, float("inf")],
            seeds=[0, 1],
            audit=REFUTES,
        )
    )
    assert {kind: RunFolder(first.folder).lines(kind).read_bytes() for kind in before} == before
    refuted = [row for row in audited.rows if row.status != "ok"]
    assert audited.code == 1
    assert {(row.label, row.epsilon_target, row.status) for row in refuted} == {
        ("plugin:Optimist", 4.0, "refuted")
    }
    assert len(refuted) == 2
    assert refuted[0].audit_params == {"latent": 4, "encoder_hidden": [8]}
    assert "refuted (ε = 4 claimed, an audit finds ε ≥" in audited.output
    assert "an audit finds ε ≥" in (audited.folder / "report.html").read_text()
    saved = load_generator(audited.folder, refuted[0].cell_id, trust_plugin=True)
    assert (saved.vouched, saved.facts.row.status) == (True, "refuted")
    assert (
        saved.facts.held_back == "the seed of its noise is known, so anyone can subtract the noise"
    )
    assert {line["refuted"] for line in ResultStore(first.folder).last("audits").values()} == {
        True,
        False,
    }


def test_too_few_audit_pairs_are_refused_before_anything_runs(
    bench: Callable[..., Ran], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"audit.*pairs: 4 are too few.*give 6 or more"):
        bench(small_grid("dp-gaussian", epsilon=4.0, audit={"pairs": 4}))
    assert not (tmp_path / "run").exists()


def test_a_bench_counts_its_audits_at_its_end(bench: Callable[..., Ran]) -> None:
    grid = small_grid("dp-gaussian", epsilon=[2.0, 4.0], audit=AUDIT)
    assert "2 of 2 cells done, 2 of 2 audits done in " in bench(grid).output


def test_a_dry_run_counts_audits_and_estimates_their_time(
    folder: Path, command: Callable[..., Done]
) -> None:
    keys = {"algorithms": ["dp-gaussian"], "epsilon": [2.0, 4.0], "audit": {"pairs": 200}}
    (folder / "g.yaml").write_text(json.dumps(SMALL | keys))
    text = command("bench", "g.yaml", "--dry-run").stdout
    assert "audits: 2 claims, 200 pairs of trainings each\n" in text
    assert re.search(r"for the 2 cells left, about [\d.]+ minutes for the 2 audits left; ", text)


def test_a_dry_run_says_that_a_plug_ins_audit_has_no_estimate(
    plugins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(plugins)
    monkeypatch.syspath_prepend(str(plugins))
    prepared = prepare(small_grid(quick("plugin:Optimist"), epsilon=4.0, audit=AUDIT), NODES)
    text = repr(Plan(prepared, tmp_path / "run", claim_audits(prepared)))
    assert "audits: 1 claim, 40 pairs of trainings each\n" in text
    assert "not known for the audit of plugin:Optimist at ε = 4" in text


def test_a_dry_run_refuses_too_few_pairs_as_a_bench_does(
    folder: Path, command: Callable[..., Done]
) -> None:
    keys = {"algorithms": ["dp-gaussian"], "audit": {"pairs": 4}}
    (folder / "g.yaml").write_text(json.dumps(SMALL | keys))
    done = command("bench", "g.yaml", "--dry-run")
    assert (done.returncode, done.stdout) == (2, "")
    assert "pairs: 4 are too few" in done.stderr
