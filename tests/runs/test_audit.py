"""Audits of a grid's claims, which run beside its cells and show in every result of the claim."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benches import Done, Ran
from cells import SMALL, quick, small_grid

from fedsim.errors import UserError
from fedsim.grid.models import Grid
from fedsim.results.generators import load_generator
from fedsim.results.store import KINDS, ResultStore, RunFolder

Bench = Callable[..., Ran]
AUDIT = {"pairs": 40, "rounds": 1}


def audited(bench: Bench, **change: Any) -> Ran:
    """A bench of one private cell with an audit."""
    return bench(small_grid("dp-gaussian", epsilon=4.0, audit=AUDIT | change))


def test_every_result_of_a_claim_shows_its_audit_which_runs_once(bench: Bench) -> None:
    grid = small_grid(
        "dp-gaussian",
        "fedavg-linear",
        epsilon=[4.0, float("inf")],
        seeds=[0, 1],
        audit=AUDIT,
    )
    first = bench(grid)
    assert first.code == 0
    claims = [row for row in first.rows if row.epsilon_target == 4.0]
    others = [row for row in first.rows if row not in claims]
    assert len(claims) == 2
    for row in claims:
        assert row.audit_pairs == 40
        assert row.audit_params == {}
        assert row.audit_canary_ratio == pytest.approx(1, abs=1e-4)
        assert row.audit_epsilon_lower <= 4
    assert {row.audit_pairs for row in others} == {None}
    assert "all 6 cells are finished" in bench(grid).output


def test_bench_that_asks_for_fewer_pairs_audits_nothing(bench: Bench) -> None:
    folder = RunFolder(audited(bench).folder)
    lines = folder.lines("audits").read_bytes()
    fewer = audited(bench, pairs=6)
    assert folder.lines("audits").read_bytes() == lines
    assert fewer.rows[0].audit_pairs == 40


def test_interrupted_audit_continues_from_its_pairs(bench: Bench) -> None:
    whole = audited(bench)
    folder = RunFolder(whole.folder)
    pairs = folder.lines("pairs")
    lines = pairs.read_text().splitlines(keepends=True)
    rows = whole.rows
    assert len(lines) == 40
    # The last line is torn, and the outcome was never written.
    pairs.write_text("".join(lines[:21])[:-9])
    folder.lines("audits").unlink()
    assert audited(bench).rows == rows
    assert pairs.read_text().splitlines(keepends=True) == lines


def optimists(**keys: Any) -> Grid:
    """A grid with a method that claims less than it spends."""
    optimist = quick("plugin:Optimist", rounds=1)
    return small_grid(
        optimist,
        "dp-gaussian",
        epsilon=[4.0, float("inf")],
        seeds=[0, 1],
        **keys,
    )


@pytest.mark.slow
def test_audit_added_later_changes_no_line_and_refutes_a_claim(bench: Bench) -> None:
    first = bench(optimists())
    assert first.code == 0
    folder = RunFolder(first.folder)
    before = {}
    for kind in KINDS:
        path = folder.lines(kind)
        if path.exists():
            before[path] = path.read_bytes()
    ran = bench(optimists(audit={"pairs": 100, "rounds": 1}))
    for path, content in before.items():
        assert path.read_bytes() == content
    refuted = [row for row in ran.rows if row.status != "ok"]
    assert ran.code == 1
    assert len(refuted) == 2
    for row in refuted:
        assert row.label == "plugin:Optimist"
        assert row.epsilon_target == 4.0
        assert row.status == "refuted"
        assert row.audit_params == {"latent": 4, "encoder_hidden": [8]}
    page = (ran.folder / "report.html").read_text()
    assert "refuted (ε = 4 claimed, an audit finds ε ≥" in ran.output
    assert "an audit finds ε ≥" in page
    saved = load_generator(ran.folder, refuted[0].cell_id, trust_plugin=True)
    assert saved.vouched
    facts = saved.facts
    assert facts.row.status == "refuted"
    reason = "the seed of its noise is known, so anyone can subtract the noise"
    assert facts.held_back.startswith(reason)
    audits = ResultStore(first.folder).lines("audits")
    assert {line["refuted"] for line in audits} == {True, False}


def test_too_few_audit_pairs_are_refused_before_anything_runs(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"audit.*pairs: 4 are too few.*give 6 or more"):
        audited(bench, pairs=4)
    assert not (tmp_path / "run").exists()


def test_bench_counts_its_audits_at_its_end(bench: Bench) -> None:
    grid = small_grid("dp-gaussian", epsilon=[2.0, 4.0], audit=AUDIT)
    assert "2 of 2 cells done, 2 of 2 audits done in " in bench(grid).output


def test_dry_run_counts_audits(folder: Path, command: Callable[..., Done]) -> None:
    keys = {
        "algorithms": ["dp-gaussian"],
        "epsilon": [2.0, 4.0],
        "audit": {"pairs": 200},
    }
    (folder / "g.yaml").write_text(json.dumps(SMALL | keys))
    done = command("bench", "g.yaml", "--dry-run")
    assert "audits: 2 claims would be attacked, each with 200 pairs of trainings\n" in done.stdout
