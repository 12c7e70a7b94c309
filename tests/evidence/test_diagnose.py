from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import norm

from fedsim.errors import UserError
from fedsim.evidence.diagnose import Settings, diagnose, diagnosis, read_settings
from fedsim.privacy.tradeoff import compose

EXAMPLES = Path(__file__).parents[2] / "benchmarks" / "accounting"
UPDATES = {"tool": "t", "clipped": "updates", "noise_multiplier": 2.0, "rounds": 10, "clients": 100, "clients_per_round": 5}
LOCAL = {"tool": "t", "clipped": "examples", "noise_at": "clients", "noise_multiplier": 2.0, "rounds": 4, "local_epochs": 3}
LOCAL |= {"rows": 1000, "batch": 100}


def worth(**fields):
    return {(each.unit, each.trust): each for each in diagnose(Settings(**fields))}


def test_the_public_dp_cvae_spends_4_2_and_has_no_epsilon_for_the_whole() -> None:
    settings = read_settings(EXAMPLES / "dp_cvae.yaml")
    assert (settings.passes, settings.steps) == (250, 1500)
    found = {(each.unit, each.trust): each.epsilon for each in diagnose(settings)}
    assert found["example", "silo"] == found["example", "aggregate"] == pytest.approx(4.2, abs=0.05)
    assert found["client", "silo"] is None
    told = "\n".join(diagnosis(settings))
    assert "ε = 1 in 20 epochs; 250 epochs run" in told
    assert "no ε for the whole, because" in told
    assert "minimum and maximum" in told


def test_flowers_fixed_clipping_has_none_because_updates_are_weighed_by_rows() -> None:
    found = diagnose(read_settings(EXAMPLES / "flower_fixed_clipping.yaml"))
    assert [each.epsilon for each in found] == [None] * 4
    assert "numbers of rows" in found[0].because
    assert "without noise" in found[1].because


def test_nvflares_filter_has_none_and_its_epsilon_would_be_another() -> None:
    settings = read_settings(EXAMPLES / "nvflare_svt.yaml")
    assert settings.sparse_vector is not None
    assert settings.sparse_vector.round_epsilon == pytest.approx(0.1 + 0.1 * 200_000 ** (2 / 3) + 10_000)
    assert all(each.epsilon is None and "10,342" in each.because for each in diagnose(settings))


def test_only_poisson_samples_of_clients_amplify_and_only_a_clients_budget() -> None:
    poisson, fixed = worth(**UPDATES, client_sampling="poisson"), worth(**UPDATES, client_sampling="fixed")
    assert poisson["client", "aggregate"].epsilon == compose([(2.0, 0.05, 10)]).epsilon(1e-5)
    assert fixed["client", "aggregate"].epsilon == compose([(2.0, 1.0, 10)]).epsilon(1e-5)
    assert poisson["example", "aggregate"].epsilon == compose([(1.0, 1.0, 10)]).epsilon(1e-5)
    assert poisson["client", "silo"].epsilon is None


def test_a_public_bound_of_a_clients_share_gives_weighed_updates_an_epsilon() -> None:
    equal = worth(**UPDATES)["client", "aggregate"].epsilon
    shared = worth(**UPDATES, weights="rows", largest_share=0.4)["client", "aggregate"].epsilon
    assert shared == compose([(1.0, 1.0, 10)]).epsilon(1e-5)
    assert shared > equal
    assert worth(**UPDATES, weights="rows")["client", "aggregate"].epsilon is None


def test_shuffled_batches_are_counted_by_the_pass_and_fixed_ones_by_the_step() -> None:
    found = {way: worth(**LOCAL, sampling=way)["example", "silo"].epsilon for way in ("poisson", "shuffled", "fixed")}
    assert found["poisson"] == compose([(2.0, 0.1, 120)]).epsilon(1e-5)
    assert found["shuffled"] == compose([(2.0 / 5**0.5, 1.0, 12)]).epsilon(1e-5)
    assert found["fixed"] == compose([(1.0, 1.0, 120)]).epsilon(1e-5)


def attacked(present: list[list[float]], absent: list[float], sigma: float, epsilon: float) -> float:
    """The largest P(S) - exp(epsilon) Q(S) of half-spaces S, of noisy sums: one of ``present``, equally likely, or ``absent``."""
    way = np.subtract(present[0], absent)
    at, spread = np.linspace(-200, 200, 40_001)[:, None] * np.linalg.norm(way), sigma * np.linalg.norm(way)
    hit, false = norm.sf((at - np.array(present) @ way) / spread).mean(1), norm.sf((at[:, 0] - np.dot(absent, way)) / spread)
    return float((hit - np.exp(epsilon) * false).max())


@pytest.mark.parametrize(
    ("sampling", "rows", "present", "absent"),
    [
        # every row's gradient is -C but the unit's, which is C; 64 rows in two batches of a pass, or 63
        ("shuffled", 64, [[-30, -32], [-32, -30]], [-32, -31]),
        # 32 of 33 rows, or of 32
        ("fixed", 33, [[-30]] * 32 + [[-32]], [-32]),
    ],
)
def test_batches_of_a_given_size_are_counted_with_what_takes_the_place_of_a_row(sampling, rows, present, absent) -> None:
    one = LOCAL | {"noise_multiplier": 1.0, "rounds": 1, "local_epochs": None, "local_steps": len(absent), "rows": rows, "batch": 32}
    told = worth(**one, sampling=sampling)["example", "silo"].epsilon
    assert attacked(present, absent, 1.0, told) <= 1e-5
    # as if nothing took its place
    assert attacked(present, absent, 1.0, compose([(1.0, 1.0, 1)]).epsilon(1e-5)) > 1e-3


@pytest.mark.parametrize(
    ("change", "word"),
    [({"clipped": "nothing"}, "nothing is clipped"), ({"noise_multiplier": 0.0}, "no noise")],
)
def test_without_a_clip_or_noise_there_is_none(change, word) -> None:
    assert all(each.epsilon is None and word in each.because for each in worth(**UPDATES | change).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "s.yaml:5: rounds"),
        ({"nois_multiplier": 1}, "did you mean 'noise_multiplier'"),
        ({"noise_multiplier": None}, "give noise_multiplier"),
        ({"clients_per_round": 200}, "no more than there are"),
        ({"clipped": "rows"}, "unknown value 'rows'"),
        ({"clipped": "examples", "local_epochs": 1, "sampling": "poisson"}, "give rows and batch"),
        ({"mechanism": "sparse-vector"}, "give sparse_vector"),
        ({"calibrated": {"epsilon": 1}}, "give local_epochs or steps"),
    ],
)
def test_settings_that_do_not_do_are_one_message(tmp_path: Path, change, message) -> None:
    data = {key: value for key, value in (UPDATES | change).items() if value is not None}
    (tmp_path / "s.yaml").write_text("# settings\n" + yaml.safe_dump(data, sort_keys=False))
    with pytest.raises(UserError, match=message):
        read_settings(tmp_path / "s.yaml")


@pytest.mark.parametrize("text", ["- 1", "a: [", ""])
def test_a_file_that_is_no_mapping_is_a_mistake(folder: Path, command, text) -> None:
    Path("s.yaml").write_text(text)
    done = command("diagnose", "s.yaml")
    assert done.returncode == 2
    assert "s.yaml" in done.stderr


@pytest.mark.parametrize("settings", [LOCAL, UPDATES | {"noise_at": "clients"}])
def test_numbers_of_rows_that_leave_clients_as_weights_leave_without_noise(settings) -> None:
    for key, found in worth(**settings, weights="rows").items():
        equal = worth(**settings)[key]
        assert found.epsilon is None
        assert equal.epsilon is None or "numbers of rows leave the clients as weights, without noise" in found.because
