import math
from typing import Any

import pytest
from rows import add_lines, add_rows, make_failed, make_rounds, make_row

from fedsim.report.findings import KINDS, findings
from fedsim.report.report import write_report
from fedsim.report.rounds import round_frame
from fedsim.results.columns import Row
from fedsim.results.stats import SeedGroups

(
    FALLS,
    TWO_SCORES,
    SEEDS,
    SIZE,
    DIVERGED,
    ACCURACY,
    BELOW_CEILING,
    COLLAPSE,
    EXPLOSION,
    DISAGREEMENT,
) = (kind.name for kind in KINDS)


def found_in(rows: list[Row], records: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Kind, setting and what was seen, a tuple a setting."""
    settings = SeedGroups.of(rows)
    found = findings(settings, round_frame(settings, records))
    return [(finding.kind.name, *seen) for finding in found for seen in finding.seen]


def kinds(rows: list[Row], records: list[dict[str, Any]]) -> list[str]:
    return [kind for kind, *_ in found_in(rows, records)]


def pair(noisy: float, noiseless: float) -> list[Row]:
    """Rows of one method with a score at epsilon = 1 and one without noise."""
    scores = {1.0: noisy, math.inf: noiseless}
    return [
        make_row(cell_id=f"{epsilon}", epsilon_target=epsilon, balanced_accuracy=score)
        for epsilon, score in scores.items()
    ]


def test_a_sound_training_has_no_findings() -> None:
    rows = [
        make_row(cell_id=each, seed=seed, balanced_accuracy=0.8) for seed, each in enumerate("ab")
    ]
    assert (
        found_in(rows, make_rounds("a") + make_rounds("b", loss_kernel=None, signal_norm=0.0)) == []
    )
    assert found_in([], []) == []


# 0.1 + 0.25 * (0.9 - 0.1) = 0.3
@pytest.mark.parametrize(("noisy", "expected"), [(0.299, [ACCURACY]), (0.301, [])])
def test_accuracy_collapsed_when_noise_took_most_of_it(noisy: float, expected: list[str]) -> None:
    assert kinds(pair(noisy, 0.9), make_rounds("1.0")) == expected


def test_score_is_compared_with_ceiling_without_noiseless_score() -> None:
    # 0.1 + 0.25 * (0.953 - 0.1) = 0.313
    others = [
        {"label": "other"},
        {"alpha": 1.0},
        {"dataset": "other"},
        {"scheme": "shards"},
        {"clients": 4},
    ]
    without = [
        make_row(cell_id=f"{each}", epsilon_target=math.inf, balanced_accuracy=0.2, **each)
        for each in others
    ]
    ((kind, _, observed),) = found_in([make_row(balanced_accuracy=0.31), *without], [])
    assert (kind, observed) == (
        BELOW_CEILING,
        "balanced accuracy 0.31, the ceiling is 0.95 (chance 0.10)",
    )
    assert kinds([make_row(balanced_accuracy=0.32)], []) == []
    assert (
        kinds(
            [
                make_row(epsilon_target=epsilon, balanced_accuracy=0.1)
                for epsilon in (math.inf, None)
            ],
            [],
        )
        == []
    )
    # a ceiling hardly above chance blames nobody: 0.33 + 0.1 * (1 - 0.33) = 0.397
    for ceiling, expected in ((0.396, []), (0.398, [BELOW_CEILING])):
        assert (
            kinds(
                [make_row(balanced_accuracy=0.33, chance=0.33, ceiling_balanced_accuracy=ceiling)],
                [],
            )
            == expected
        )


@pytest.mark.parametrize(
    ("at_8", "expected"),
    [((0.7, 0.71, 0.72), [FALLS]), ((0.79, 0.81, 0.8), []), ((0.6, 0.8, 0.8), [])],
)
def test_a_score_falls_with_epsilon_if_all_its_seeds_say_so(
    at_8: tuple[float, ...], expected: list[str]
) -> None:
    scores = [(1.0, seed, 0.8) for seed in range(3)] + [
        (8.0, seed, score) for seed, score in enumerate(at_8)
    ]
    rows = [
        make_row(cell_id=f"{e} {seed}", seed=seed, epsilon_target=e, balanced_accuracy=score)
        for e, seed, score in scores
    ]
    assert kinds(rows, []) == expected


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (
            [{"knn_balanced_accuracy": 0.8}, {"knn_balanced_accuracy": 0.6}],
            [(TWO_SCORES, "0.80 by the probe, 0.60 by neighbours")],
        ),
        ([{"knn_balanced_accuracy": 0.7}, {"knn_balanced_accuracy": 0.9}], []),
        (
            [{"balanced_accuracy": 0.9}, {"balanced_accuracy": 0.55}],
            [(SEEDS, "balanced accuracy 0.90, 0.55")],
        ),
        ([{"synthetic_norm": 1.0}, {"synthetic_norm": 11.0}], [(SIZE, "norm 11")]),
        ([{"synthetic_norm": 0.5}, {"synthetic_norm": 1.1}], [(SIZE, "norm 0.5")]),
        ([{"synthetic_norm": 0.9}, {"synthetic_norm": 1.4}], []),
    ],
)
def test_seeds_are_looked_at_not_their_mean(
    scores: list[dict[str, float]], expected: list[tuple[str, str]]
) -> None:
    given = {"balanced_accuracy": 0.8, "knn_balanced_accuracy": None}
    rows = [
        make_row(cell_id=f"{seed}", seed=seed, **given | own) for seed, own in enumerate(scores)
    ]
    found = found_in(rows, [])
    assert [kind for kind, *_ in found] == [kind for kind, _ in expected]
    assert all(
        seen.startswith(start) for (*_, seen), (_, start) in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("kl", 0.049, [COLLAPSE]),
        ("kl", 0.051, []),
        ("kl", [4.0] * 6 + [51.0] * 2, [EXPLOSION]),
        ("kl", [4.0] * 6 + [49.0] * 2, []),
        ("kl", [2.0] * 3 + [math.inf] + [2.0] * 4, [EXPLOSION]),
        ("kl", [2.0] * 7 + [math.nan], [EXPLOSION]),
        ("kl", None, []),
        ("cross_client_mmd", [0.3] * 6 + [0.151] * 2, [DISAGREEMENT]),
        ("cross_client_mmd", [0.3] * 6 + [0.149] * 2, []),
        ("cross_client_mmd", None, []),
    ],
)
def test_findings_look_at_the_last_quarter_of_the_rounds(
    name: str, values: Any, expected: list[str]
) -> None:
    fields = {name: values}
    assert kinds([make_row(cell_id="a")], make_rounds("a", **fields)) == expected


@pytest.mark.parametrize("name", ["loss_reconstruction", "loss_of_my_own"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_training_diverged_if_any_loss_is_not_finite(name: str, value: float) -> None:
    losses = {name: [0.5] * 5 + [value] * 3}
    records = make_rounds("a", **losses)
    for row in (make_row(cell_id="a", balanced_accuracy=0.1), make_failed(cell_id="a")):
        ((kind, _, observed),) = found_in([row], records)
        assert kind == DIVERGED
        assert f"({name[5:].replace('_', ' ')}) is not finite from round 5 on" in observed


def test_findings_of_a_folder_have_short_summaries(tmp_path: Any) -> None:
    rows = [
        make_row(cell_id=f"{alpha}", alpha=alpha, balanced_accuracy=0.8)
        for alpha in (0.1, 0.3, 1.0)
    ]
    add_rows(tmp_path, *rows)
    assert write_report(tmp_path).findings == []
    for each in rows:
        add_lines(
            tmp_path / "rounds.jsonl", make_rounds(each.cell_id, kl=0.0, cross_client_mmd=0.2)
        )
    collapse, disagreement = write_report(tmp_path).findings
    assert [where for where, _ in collapse.seen] == [
        f"fedhypevae · digits · α = {each.alpha:g} · 10 clients · ε = 1" for each in rows
    ]
    assert collapse.summary.startswith(f"{COLLAPSE} in 3 settings, such as {collapse.seen[0][0]}: ")
    assert "What usually helps: fedhypevae-sites" in disagreement.summary
