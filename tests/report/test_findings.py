"""The known failures of a run, each just on either side of its condition."""

import math
from pathlib import Path
from typing import Any

import pytest
from rows import add_lines, add_rows, make_failed, make_rounds, make_row

from fedsim.report.findings import KINDS, Finding, findings, round_frame
from fedsim.report.report import write_report
from fedsim.results.columns import Row
from fedsim.results.stats import SeedGroups

(
    DIVERGED,
    EXPLOSION,
    ACCURACY,
    BELOW_CEILING,
    FALLS,
    TWO_SCORES,
    REVISIONS,
    SIZE,
    SEEDS,
    COLLAPSE,
    DISAGREEMENT,
    DRAWN_CODES,
) = (kind.name for kind in KINDS)


def found_in(rows: list[Row], records: list[dict[str, Any]]) -> list[Finding]:
    settings = SeedGroups.of(rows)
    return findings(settings, round_frame(settings, records))


def kinds(rows: list[Row], records: list[dict[str, Any]]) -> list[str]:
    """The name of the failure for every setting that shows one."""
    return [each.kind.name for each in found_in(rows, records) for _ in range(len(each.table))]


def observed(rows: list[Row], records: list[dict[str, Any]]) -> dict[str, str]:
    """What was observed in the only setting of the only finding, by head."""
    (finding,) = found_in(rows, records)
    (line,) = finding.table.to_dict("records")
    return {str(head): text for head, text in list(line.items())[3:]}


def of_seeds(*scores: dict[str, Any], **fields: Any) -> list[Row]:
    """One row per seed, each with its own scores."""
    return [
        make_row(**{"cell_id": f"{seed}{fields}", "seed": seed, **fields, **own})
        for seed, own in enumerate(scores)
    ]


def pair(noisy: float, noiseless: float) -> list[Row]:
    """Rows of one method with a score at epsilon = 1 and one without noise."""
    return [
        make_row(cell_id="noisy", epsilon_target=1.0, balanced_accuracy=noisy),
        make_row(
            cell_id="noiseless",
            epsilon_target=math.inf,
            balanced_accuracy=noiseless,
        ),
    ]


def test_a_sound_training_has_no_findings() -> None:
    rows = of_seeds({"cell_id": "a"}, {"cell_id": "b"}, balanced_accuracy=0.8)
    records = make_rounds("a") + make_rounds("b", loss_kernel=None, signal_norm=0.0)
    assert found_in(rows, records) == []


def test_no_results_have_no_findings() -> None:
    assert found_in([], []) == []


# 0.1 + 0.25 * (0.9 - 0.1) = 0.3
@pytest.mark.parametrize(("noisy", "expected"), [(0.299, [ACCURACY]), (0.301, [])])
def test_accuracy_collapsed_when_noise_took_most_of_it(noisy: float, expected: list[str]) -> None:
    assert kinds(pair(noisy, 0.9), make_rounds("noisy")) == expected


def test_collapse_shows_score_and_noise_in_columns() -> None:
    assert observed(pair(0.2, 0.9), make_rounds("noisy")) == {
        "balanced accuracy": "0.20",
        "without noise": "0.90",
        "chance": "0.10",
        "noise norm / signal norm": "2",
    }


@pytest.mark.parametrize(
    "other",
    [{"label": "other"}, {"alpha": 1.0}, {"dataset": "o"}, {"scheme": "shards"}, {"clients": 4}],
)
def test_ceiling_counts_where_no_score_without_noise_is_comparable(other: dict[str, Any]) -> None:
    noiseless = make_row(
        cell_id="n",
        epsilon_target=math.inf,
        balanced_accuracy=0.2,
        **other,
    )
    # 0.1 + 0.25 * (0.953 - 0.1) = 0.313
    assert kinds([make_row(balanced_accuracy=0.31), noiseless], []) == [BELOW_CEILING]


@pytest.mark.parametrize(
    "fields",
    [
        {"balanced_accuracy": 0.32},
        {"balanced_accuracy": 0.1, "epsilon_target": math.inf},
        {"balanced_accuracy": 0.1, "epsilon_target": None},
    ],
)
def test_a_score_near_the_ceiling_or_without_noise_is_no_finding(fields: dict[str, Any]) -> None:
    assert kinds([make_row(**fields)], []) == []


# 0.33 + 0.1 * (1 - 0.33) = 0.397
@pytest.mark.parametrize(
    ("ceiling", "expected"),
    [(0.396, []), (0.398, [BELOW_CEILING])],
)
def test_a_ceiling_hardly_above_chance_blames_nobody(ceiling: float, expected: list[str]) -> None:
    row = make_row(
        balanced_accuracy=0.33,
        chance=0.33,
        ceiling_balanced_accuracy=ceiling,
    )
    assert kinds([row], []) == expected


@pytest.mark.parametrize(
    ("at_8", "expected"),
    [((0.7, 0.71, 0.72), [FALLS]), ((0.79, 0.81, 0.8), []), ((0.6, 0.8, 0.8), [])],
)
def test_a_score_falls_with_epsilon_if_all_its_seeds_say_so(
    at_8: tuple[float, ...], expected: list[str]
) -> None:
    rows = of_seeds(*[{"balanced_accuracy": 0.8}] * 3, epsilon_target=1.0)
    rows += of_seeds(
        *[{"balanced_accuracy": score} for score in at_8],
        epsilon_target=8.0,
    )
    assert kinds(rows, []) == expected


@pytest.mark.parametrize(
    ("name", "values", "kind", "text"),
    [
        ("knn_balanced_accuracy", (0.8, 0.6), TWO_SCORES, "0.60"),
        ("balanced_accuracy", (0.9, 0.55), SEEDS, "0.90, 0.55"),
        ("synthetic_norm", (1.0, 11.0), SIZE, "11"),
        ("synthetic_norm", (0.5, 1.1), SIZE, "0.5"),
        ("evaluation_source", ("1a", "2b"), REVISIONS, "1a"),
    ],
)
def test_findings_look_at_seeds_and_not_at_their_mean(
    name: str, values: tuple[Any, ...], kind: str, text: str
) -> None:
    rows = of_seeds(*[{"balanced_accuracy": 0.8, name: value} for value in values])
    assert kinds(rows, []) == [kind]
    assert text in observed(rows, []).values()


@pytest.mark.parametrize(
    ("name", "values"), [("knn_balanced_accuracy", (0.7, 0.9)), ("synthetic_norm", (0.9, 1.4))]
)
def test_small_differences_between_seeds_are_no_finding(
    name: str, values: tuple[float, ...]
) -> None:
    assert (
        kinds(
            of_seeds(*[{"balanced_accuracy": 0.8, name: value} for value in values]),
            [],
        )
        == []
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
@pytest.mark.parametrize("row", [make_row(balanced_accuracy=0.1), make_failed()])
def test_training_diverged_if_any_loss_is_not_finite(name: str, value: float, row: Row) -> None:
    losses = {name: [0.5] * 5 + [value] * 3}
    assert kinds([row], make_rounds("a", **losses)) == [DIVERGED]
    words = {"loss": name[5:].replace("_", " "), "not finite from round": "5"}
    assert observed([row], make_rounds("a", **losses)) == words


@pytest.mark.parametrize(
    ("epsilon", "scope", "expected"),
    [
        (1.0, "hypernetwork", [DRAWN_CODES]),
        (math.inf, "hypernetwork", []),
        (1.0, "joint", []),
    ],
)
def test_codes_that_are_not_trained_are_a_finding_under_noise(
    epsilon: float, scope: str, expected: list[str]
) -> None:
    assert kinds([make_row(epsilon_target=epsilon, scope=scope)], []) == expected


def test_findings_of_a_folder_list_settings_and_what_helps(tmp_path: Path) -> None:
    rows = [
        make_row(cell_id=f"{alpha}", alpha=alpha, balanced_accuracy=0.8)
        for alpha in (0.1, 0.3, 1.0)
    ]
    add_rows(tmp_path, *rows)
    for row in rows:
        records = make_rounds(row.cell_id, kl=0.0, cross_client_mmd=0.2)
        add_lines(tmp_path / "rounds.jsonl", records)
    collapse, disagreement = write_report(tmp_path).findings
    assert collapse.table["setting"].tolist() == [
        f"digits · dirichlet · α = {row.alpha:g} · 10 clients" for row in rows
    ]
    first = "fedhypevae · digits · dirichlet · α = 0.1 · 10 clients · ε = 1"
    assert collapse.summary.startswith(f"{COLLAPSE} (3 settings, such as {first}): KL ")
    assert "What usually helps: the method fedhypevae-sites" in disagreement.summary
