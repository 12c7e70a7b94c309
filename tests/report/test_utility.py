"""The benchmark's tables of utility: the same means as the report, and differences paired over seeds."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from rows import add_rows

from fedsim.results.groups import Interval

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "utility.py"


def test_methods_are_compared_seed_by_seed(tmp_path, row, monkeypatch, capsys):
    run = tmp_path / "run"
    scores = {"good": [0.8, 0.7, 0.9], "poor": [0.5, 0.45, 0.4]}
    for label, values in scores.items():
        for seed, value in enumerate(values):
            add_rows(run, row(cell_id=f"{label}{seed}", label=label, seed=seed, balanced_accuracy=value, ceiling_balanced_accuracy=1.0))
    add_rows(run, row(cell_id="open", label="open", epsilon_target=None, balanced_accuracy=0.9, ceiling_balanced_accuracy=1.0))
    (run / "manifest.json").write_text(
        json.dumps({"hardware": {"cores": 2, "cpu": "x", "memory_gib": 4}, "command": "fedsim bench", "revision": "1"})
    )
    monkeypatch.setattr(sys, "argv", ["utility.py", str(run), "--json", str(tmp_path / "out.json")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    shown = capsys.readouterr().out
    assert "| good − poor | +0.350 ± " in shown
    assert "| method | ε = 1 | no ε |" in shown
    records = json.loads((tmp_path / "out.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    (difference,) = (each for each in records if each["measure"] == "difference of share")
    expected = Interval.of([0.8 - 0.5, 0.7 - 0.45, 0.9 - 0.4])
    assert (difference["mean"], difference["ci95"], difference["seeds"]) == pytest.approx((expected.mean, expected.half_width, 3))
    assert (difference["p"], difference["p_holm"]) == pytest.approx((0.0445, 0.0445), abs=1e-4)
    assert [each["epsilon"] for each in records if each["measure"] == "share"] == [1.0, 1.0, None]
