"""Audits of a grid's claims: beside its cells, on the same slots, kept as they come, and in every row of the claim."""

from collections.abc import Callable
from pathlib import Path

import pytest
from benches import Ran
from cells import quick, small_grid
from sites import digits_of_writers

from fedsim.audit.of_grid import unaudited
from fedsim.errors import UserError
from fedsim.results.store import ResultStore
from fedsim.simulation.generators import load_generator

AUDIT = {"pairs": 40, "rounds": 1}


def test_every_row_of_a_claim_shows_its_audit_and_a_second_bench_runs_none(bench: Callable[..., Ran]) -> None:
    grid = small_grid("dp-gaussian", "fedavg-linear", epsilon=[4.0, float("inf")], seeds=[0, 1], audit=AUDIT)
    first = bench(grid)
    assert first.code == 0
    rows = {(row.label, row.epsilon_target, row.seed): row for row in first.rows}
    audited = [rows["dp-gaussian", 4.0, seed] for seed in (0, 1)]
    assert {row.audit_pairs for row in audited} == {40}
    assert {row.audit_method for row in audited} == {"white box"}
    assert all(row.audit_params == {} for row in audited)
    assert all(row.audit_canary_ratio == pytest.approx(1, abs=1e-4) for row in audited)
    assert all(row.audit_epsilon_lower is not None and row.audit_epsilon_lower <= 4 for row in audited)
    assert {row.audit_pairs for row in first.rows if row not in audited} == {None}
    assert "all 6 cells are finished" in bench(grid).output


def test_an_interrupted_audit_goes_on_from_its_pairs(bench: Callable[..., Ran], tmp_path: Path) -> None:
    grid = small_grid("dp-gaussian", epsilon=4.0, audit=AUDIT)
    whole = bench(grid, "whole")
    (row,) = whole.rows
    lines = (tmp_path / "whole" / "audits.jsonl").read_text().splitlines(keepends=True)
    cut = ResultStore(tmp_path / "cut")
    cut.append(unaudited(row))
    # the last line is torn
    cut.folder.audits.write_text("".join(lines[:21])[:-9])
    assert bench(grid, "cut").rows == whole.rows
    assert sorted(cut.folder.audits.read_text().splitlines()) == sorted(line.strip() for line in lines)


def test_a_refuted_claim_is_never_ok(bench: Callable[..., Ran]) -> None:
    grid = small_grid(quick("plugin:Optimist", rounds=1), epsilon=4.0, audit={"pairs": 100, "rounds": 1})
    ran = bench(grid)
    assert ran.code == 1
    (row,) = ran.rows
    assert row.status == "refuted"
    assert row.audit_params == {"latent": 4, "encoder_hidden": [8]}
    assert unaudited(row).audit_params is None
    assert "refuted (ε = 4 claimed, an audit finds ε ≥" in ran.output
    page = (ran.folder / "report.html").read_text()
    assert "100 pairs of trainings refute every" in page
    saved = load_generator(ran.folder, trust_plugin=True)
    assert saved.vouched
    assert saved.facts.held_back == "the seed of its noise is known, and who knows it can take the noise off"
    assert saved.facts.status == "refuted"


def test_groups_are_audited(bench: Callable[..., Ran], tmp_path: Path) -> None:
    data = {"npz": str(digits_of_writers(tmp_path)), "overlap": "keep"}
    grid = small_grid("dp-gaussian", dataset=data, unit={"column": "writer"}, epsilon=4.0, audit=AUDIT)
    (row,) = bench(grid).rows
    assert row.audit_pairs == 40
    assert row.audit_canary_ratio == pytest.approx(1, abs=1e-4)


def test_too_few_pairs_for_any_bound_are_refused_before_anything_runs(bench: Callable[..., Ran], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"audit.*pairs: 6 are too few.*give 12 or more"):
        bench(small_grid("dp-gaussian", epsilon=4.0, audit={"pairs": 6}))
    assert not (tmp_path / "run").exists()
