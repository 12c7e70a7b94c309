"""The rule of the linear probe on real rows, few and many."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared/data"
spec = importlib.util.spec_from_file_location(
    "probe_rule",
    ROOT / "benchmarks/probe_rule.py",
)
assert spec is not None
assert spec.loader is not None
probe_rule = importlib.util.module_from_spec(spec)
spec.loader.exec_module(probe_rule)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.exists(), reason="real embeddings are not beside the checkout"),
]


@pytest.mark.parametrize("method", ["dp-gaussian", "dp-gmm", "fedhypevae-warm"])
def test_no_score_falls_as_noise_goes_nor_below_the_fixed_probe(
    method: str, tmp_path: Path
) -> None:
    probe_rule.small_sets(DATA, tmp_path)
    scores = [
        probe_rule.evaluated("small3", tmp_path / "small3.npz", method, epsilon, 0, tmp_path)
        for epsilon in (4, 32, float("inf"))
    ]
    for score in scores[1:]:
        assert score["rule"] >= scores[0]["rule"] - 0.01
        assert score["rule"] >= score["best"] - 0.03
    score = probe_rule.evaluated(
        "chestxray_dinov2s", DATA / "chestxray_dinov2s.npz", method, 8, 0, tmp_path
    )
    assert score["rule"] >= score["fixed"] - 0.005
