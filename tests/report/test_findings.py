import math

import pytest
from rows import add_lines, add_rows

from fedsim.report.findings import KINDS, findings
from fedsim.report.report import write_report
from fedsim.report.rounds import round_frame
from fedsim.results.stats import Settings

NAMES = (
    *("score falls as noise goes", "probe and nearest neighbours disagree", "seeds far apart"),
    *("synthetic rows of another size than real ones", "training diverged", "accuracy collapse under noise"),
    *("accuracy far below the ceiling", "KL collapse", "KL explosion", "cross-client MMD stays high"),
)
FALLS, JUDGES, SEEDS, SIZE, DIVERGED, ACCURACY, BELOW_CEILING, COLLAPSE, EXPLOSION, DISAGREEMENT = NAMES


def found_in(rows, records):
    """Kind, setting and what was seen, a tuple a setting."""
    settings = Settings.of(rows)
    found = findings(settings, round_frame(settings, records))
    return [(finding.kind.name, *seen) for finding in found for seen in finding.seen]


def kinds(rows, records):
    return [kind for kind, *_ in found_in(rows, records)]


def only(rows, records):
    (found,) = found_in(rows, records)
    return found


@pytest.fixture
def pair(row):
    """Rows of one method with a score at epsilon = 1 and one without noise."""
    return lambda noisy, noiseless: [
        row(cell_id="a", epsilon_target=1.0, balanced_accuracy=noisy),
        row(cell_id="i", epsilon_target=math.inf, balanced_accuracy=noiseless),
    ]


def test_a_sound_training_has_no_findings(row, training):
    rows = [row(cell_id=each, seed=seed, balanced_accuracy=0.8) for seed, each in enumerate("ab")]
    assert found_in(rows, training("a") + training("b")) == []
    assert found_in([], []) == []


# 0.1 + 0.25 * (0.9 - 0.1) = 0.3
@pytest.mark.parametrize(("noisy", "expected"), [(0.299, [ACCURACY]), (0.301, []), (0.12, [ACCURACY])])
def test_accuracy_collapsed_when_noise_took_most_of_it(pair, training, noisy, expected):
    assert kinds(pair(noisy, 0.9), training("a")) == expected


def test_an_accuracy_collapse_is_told_with_both_scores_and_the_noise(pair, training):
    _, setting, observed = only(pair(0.12, 0.9), training("a", noise_norm=[1.0] * 6 + [11_600.0] * 2))
    assert setting == "fedhypevae · digits · α = 0.1 · 10 clients · ε = 1"
    assert observed == "balanced accuracy 0.12, 0.90 without noise (chance 0.10); the noise's norm is 116 times the signal's"


def test_where_clients_noise_their_own_steps_no_noise_of_the_sum_is_told(pair, training):
    assert only(pair(0.12, 0.9), training("a", noise_norm=[0.0] * 8))[2].endswith("(chance 0.10)")


def test_without_a_noiseless_score_the_ceiling_counts_and_noise_is_not_blamed(row):
    # 0.1 + 0.25 * (0.953 - 0.1) = 0.313
    kind, _, observed = only([row(balanced_accuracy=0.31)], [])
    assert (kind, observed) == (BELOW_CEILING, "balanced accuracy 0.31, the ceiling is 0.95 (chance 0.10)")
    assert kinds([row(balanced_accuracy=0.32)], []) == []
    assert kinds([row(balanced_accuracy=0.1, chance=None)], []) == []


# 0.33 + 0.1 * (1 - 0.33) = 0.397
@pytest.mark.parametrize(("ceiling", "expected"), [(0.37, []), (0.396, []), (0.398, [BELOW_CEILING])])
def test_a_ceiling_hardly_above_chance_blames_nobody(row, ceiling, expected):
    assert kinds([row(balanced_accuracy=0.33, chance=0.33, ceiling_balanced_accuracy=ceiling)], []) == expected


def test_what_diverged_is_told_once(pair, row, training):
    lost = training("a", loss_kl=math.nan)
    assert kinds([row(cell_id="a", balanced_accuracy=0.1)], lost) == [DIVERGED]
    assert kinds(pair(0.1, 0.9), lost) == [DIVERGED]


def test_scores_that_noise_took_come_before_those_of_which_nobody_knows(row):
    unknown = row(cell_id="u", label="unknown", balanced_accuracy=0.1)
    taken = [row(cell_id=f"{epsilon}", epsilon_target=epsilon, balanced_accuracy=value) for epsilon, value in ((1.0, 0.1), (math.inf, 0.9))]
    assert kinds([unknown, *taken], []) == [ACCURACY, BELOW_CEILING]


def test_the_noiseless_score_is_of_the_same_method_and_place(row):
    other = [
        row(cell_id="l", label="other", epsilon_target=math.inf, balanced_accuracy=0.2),
        row(cell_id="p", alpha=1.0, epsilon_target=math.inf, balanced_accuracy=0.2),
        row(cell_id="d", dataset="other", epsilon_target=math.inf, balanced_accuracy=0.2),
        row(cell_id="s", scheme="shards", epsilon_target=math.inf, balanced_accuracy=0.2),
        row(cell_id="c", clients=4, epsilon_target=math.inf, balanced_accuracy=0.2),
    ]
    assert "the ceiling is 0.95" in only([row(cell_id="a", balanced_accuracy=0.2), *other], [])[2]


def test_accuracy_is_the_mean_over_seeds_that_are_ok(row, failed):
    left_out = [row(cell_id="o", seed=2, status="overspent", epsilon_spent=9.0, balanced_accuracy=0.9), failed(cell_id="f", seed=3)]
    seeds = [row(cell_id="a", seed=0, balanced_accuracy=0.1), row(cell_id="b", seed=1, balanced_accuracy=0.2)]
    assert "balanced accuracy 0.15" in only([*seeds, *left_out], [])[2]
    assert kinds([*seeds, row(cell_id="c", seed=4, balanced_accuracy=0.9)], []) == [SEEDS]


@pytest.mark.parametrize(("at_8", "expected"), [((0.7, 0.71, 0.72), [FALLS]), ((0.79, 0.81, 0.8), []), ((0.6, 0.8, 0.8), [])])
def test_a_score_falls_with_epsilon_if_its_seeds_say_so(row, at_8, expected):
    curves = {1.0: (0.8, 0.8, 0.8), 8.0: at_8}
    rows = [
        row(cell_id=f"{epsilon} {seed}", seed=seed, epsilon_target=epsilon, balanced_accuracy=score)
        for epsilon, scores in curves.items()
        for seed, score in enumerate(scores)
    ]
    assert kinds(rows, []) == expected


def test_single_seeds_show_judges_that_disagree_seeds_that_do_and_rows_of_another_size(row):
    rows = [
        row(cell_id="a", seed=0, balanced_accuracy=0.9, knn_balanced_accuracy=0.7, synthetic_norm=8.5),
        row(cell_id="b", seed=1, balanced_accuracy=0.5, knn_balanced_accuracy=0.5, synthetic_norm=1.0),
    ]
    assert {kind: observed for kind, _, observed in found_in(rows, [])} == {
        JUDGES: "0.90 by the probe, 0.70 by neighbours, in 1 of 2 seeds",
        SEEDS: "balanced accuracy 0.90, 0.50",
        SIZE: "norm 8.5, in 1 of 2 seeds",
    }


def test_a_method_without_noise_does_not_collapse_under_noise(row):
    assert kinds([row(epsilon_target=epsilon, balanced_accuracy=0.1) for epsilon in (math.inf, None)], []) == []


@pytest.mark.parametrize(
    ("kl", "expected"), [(0.049, [COLLAPSE]), (0.051, []), ([2.0] * 6 + [0.01] * 2, [COLLAPSE]), ([0.0] * 6 + [2.0] * 2, [])]
)
def test_kl_collapsed_when_it_is_low_in_the_last_quarter(row, training, kl, expected):
    assert kinds([row(cell_id="a")], training("a", kl=kl)) == expected


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        ([4.0] * 6 + [51.0] * 2, [EXPLOSION]),
        ([4.0] * 6 + [49.0] * 2, []),
        ([6.0] * 6 + [59.0] * 2, []),
        ([6.0] * 6 + [61.0] * 2, [EXPLOSION]),
        ([4.0] + [500.0] * 5 + [4.0] * 2, []),
        ([2.0] * 3 + [math.inf] + [2.0] * 4, [EXPLOSION]),
        ([2.0] * 7 + [math.nan], [EXPLOSION]),
        ([None] + [2.0] * 6 + [None], []),
        (None, []),
    ],
)
def test_kl_exploded_when_it_grew_tenfold_beyond_fifty_nats_or_is_not_finite(row, training, kl, expected):
    assert kinds([row(cell_id="a")], training("a", kl=kl)) == expected


@pytest.mark.parametrize(
    ("mmd", "expected"),
    [
        (0.101, [DISAGREEMENT]),
        (0.099, []),
        ([0.3] * 6 + [0.151] * 2, [DISAGREEMENT]),
        ([0.3] * 6 + [0.149] * 2, []),
        (None, []),
    ],
)
def test_mmd_stays_high_when_it_is_high_and_did_not_halve(row, training, mmd, expected):
    assert kinds([row(cell_id="a")], training("a", cross_client_mmd=mmd)) == expected


@pytest.mark.parametrize("name", ["loss_reconstruction", "loss_of_my_own"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_training_diverged_when_any_loss_is_not_finite(row, failed, training, name, value):
    records = training("a", **{name: [0.5] * 5 + [value] * 3})
    for each in (row(cell_id="a"), failed(cell_id="a")):
        kind, _, observed = only([each], records)
        assert kind == DIVERGED
        assert f"({name[5:].replace('_', ' ')}) is not finite from round 5 on" in observed


def test_a_loss_that_was_not_computed_is_no_divergence(row, training):
    assert kinds([row(cell_id="a")], training("a", loss_kernel=None, signal_norm=0.0)) == []


def test_rounds_of_a_warm_start_and_of_other_grids_do_not_count(row, training):
    warm = [{"cell_id": "a", "round": 0, "release": "moments", "kl": 0.0}]
    assert kinds([row(cell_id="a")], warm + training("a", start=1) + training("z", kl=0.0)) == []


def test_one_finding_speaks_for_all_seeds(row, training):
    rows = [row(cell_id=each, seed=seed) for seed, each in enumerate("abc")]
    both = training("a", kl=0.01) + training("b", kl=0.03)
    assert only(rows, both + training("c"))[2] == "0.02 nats an example in the last quarter of the rounds, in 2 of 3 seeds"
    assert only(rows, both + training("c", kl=0.02))[2].endswith(", in all 3 seeds")


def setting(row):
    return f"{row.label} · digits · α = {row.alpha:g} · {row.clients} clients · ε = {row.epsilon_target:g}"


def test_settings_are_told_apart_and_a_summary_is_short(row, training):
    rows = [row(cell_id=f"{alpha}", alpha=alpha) for alpha in (0.1, 0.3, 1.0)]
    records = [record for each in rows for record in training(each.cell_id, kl=0.0, cross_client_mmd=0.2)]
    assert [where for kind, where, _ in found_in(rows, records) if kind == COLLAPSE] == [setting(each) for each in rows]
    collapse, disagreement = findings(settings := Settings.of(rows), round_frame(settings, records))
    assert collapse.summary.startswith(f"{COLLAPSE} in 3 settings, such as {setting(rows[0])}: ")
    assert "What usually helps: synthesis: mixture" in disagreement.summary


def test_every_kind_has_a_name_a_meaning_and_a_help():
    assert [kind.name for kind in KINDS] == [*NAMES]
    assert all(kind.meaning and kind.help for kind in KINDS)


def test_findings_of_a_folder_come_from_its_files(tmp_path, row, training):
    add_rows(tmp_path, row(cell_id="a"))
    assert write_report(tmp_path).findings == []
    add_lines(tmp_path / "rounds.jsonl", training("a", loss_kl=math.nan, kl=math.inf))
    assert [finding.kind.name for finding in write_report(tmp_path).findings] == [DIVERGED, EXPLOSION]
