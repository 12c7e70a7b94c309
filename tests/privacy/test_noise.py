"""Noise is Gaussian of its standard deviation, independent, and the same for the same stream."""

import pytest
import torch
from scipy.stats import kstest, norm

from fedsim.privacy.noise import CHUNK, Noise, fingerprint, gaussian
from fedsim.seeds import SERVER, Keystream, Purpose, Seeds

SHAPES = {
    "weight": (40, 50),
    "bias": torch.Size([50]),
    "scale": (),
}


def stream(seed: int = 0) -> Keystream:
    return Seeds(seed).keystream(Purpose.NOISE, 0, SERVER)


def noise_of(
    count: int,
    std: float = 1.0,
    seed: int = 0,
) -> Noise:
    return gaussian({"a": (count,)}, std, stream(seed))


@pytest.mark.parametrize("std", [0.01, 1.0, 7.5])
def test_noise_is_gaussian_of_its_deviation_and_of_no_other(std):
    parts = gaussian(
        {"a": (100, 30), "b": (2000,)},
        std,
        stream(),
    ).parts
    numbers = torch.cat([parts["a"].flatten(), parts["b"]])
    values = numbers.double().numpy()
    assert kstest(values, norm(0, std).cdf).pvalue > 0.01
    for wrong in (2 / 3 * std, 3 / 2 * std):
        assert kstest(values, norm(0, wrong).cdf).pvalue < 1e-6


def test_tails_are_those_of_a_gaussian():
    values = noise_of(2_000_000).parts["a"].abs()
    for threshold in (3.0, 4.0, 4.5):
        beyond = float((values > threshold).sum())
        expected = 2 * len(values) * norm.sf(threshold)
        assert abs(beyond - expected) < 5 * expected**0.5
    assert 4.7 < float(values.max()) < 6.8


def correlation(left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the correlation in units of its standard deviation for independent numbers."""
    matrix = torch.corrcoef(torch.stack([left, right]))
    return abs(float(matrix[0, 1])) * len(left) ** 0.5


def test_parts_and_coordinates_are_independent():
    noise = gaussian(
        {"a": (20_000,), "b": (20_000,)},
        1.0,
        stream(),
    ).parts
    a = noise["a"]
    assert correlation(a, noise["b"]) < 4
    assert correlation(a[1:], a[:-1]) < 4


def test_the_two_numbers_of_a_pair_are_independent():
    first, second = noise_of(CHUNK).parts["a"].chunk(2)
    assert correlation(first, second) < 4
    # A common radius would tie the squares together.
    assert correlation(first.square(), second.square()) < 4


def test_second_draw_differs_and_the_global_state_stays():
    generator = stream()
    before = torch.get_rng_state()
    one = gaussian(SHAPES, 1.0, generator)
    two = gaussian(SHAPES, 1.0, generator)
    assert one.fingerprint != two.fingerprint
    assert fingerprint(one.parts) != fingerprint(two.parts)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "std",
    [
        -1.0,
        float("nan"),
        float("inf"),
        1e-31,
        1e31,
    ],
)
def test_impossible_standard_deviation_is_refused(std):
    with pytest.raises(ValueError, match="standard deviation"):
        gaussian(SHAPES, std, stream())


def test_fingerprint_is_that_of_the_stream_for_any_deviation():
    one = noise_of(40_000)
    scaled = noise_of(40_000, std=2.5)
    of_another_stream = noise_of(40_000, seed=1)
    assert one.fingerprint == 3059526390  # on every processor
    assert scaled.fingerprint == one.fingerprint
    assert of_another_stream.fingerprint != one.fingerprint
