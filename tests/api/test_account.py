import pytest

import fedsim


def test_sigma_and_epsilon_turn_into_each_other() -> None:
    spent = fedsim.account(sigma=1.1, sample_rate=0.01, rounds=3000, delta=1e-5)
    assert spent.epsilon == pytest.approx(2.67549, abs=1e-4)  # dp-accounting's
    assert spent.epsilons[1e-6] > spent.epsilons[1e-5] == spent.epsilon > spent.epsilons[1e-4]
    assert "ε = 2.6755 at δ = 1e-05" in repr(spent)
    bought = fedsim.account(epsilon=2.0, rounds=100, sample_rate=0.1)
    assert 1.98 < bought.epsilon <= 2.0
    assert fedsim.account(sigma=bought.sigma, rounds=100, sample_rate=0.1).epsilon == bought.epsilon


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "^epsilon: one of `epsilon` and `sigma` is needed"),
        ({"epsilon": 1, "sigma": 1}, "and not both"),
        ({"sigma": 1, "rounds": 0}, "^rounds: must be above 0 and at most 1e.09, got 0"),
        ({"sigma": 1, "sample_rate": 2}, "^sample_rate: must be above 0 and at most 1, got 2"),
        ({"sigma": 1, "delta": 0}, "^delta: must be between 0 and 1, got 0"),
    ],
)
def test_a_mistake_names_the_parameter(given: dict[str, float], said: str) -> None:
    with pytest.raises(fedsim.UserError, match=said):
        fedsim.account(**given)  # type: ignore[arg-type]
