import pytest
import torch
from scipy.stats import kstest, norm

from fedsim.privacy.noise import CHUNK, fingerprint, gaussian
from fedsim.seeds import SERVER, Purpose, Seeds

SHAPES = {"weight": (40, 50), "bias": torch.Size([50]), "scale": ()}


def stream(seed=0, round_=0, client=SERVER):
    return Seeds(seed).keystream(Purpose.NOISE, round_, client)


def drawn(*which, shapes=SHAPES):
    return gaussian(shapes, 1.0, stream(*which)).parts


@pytest.mark.parametrize("sigma", [0.01, 1.0, 7.5])
def test_the_noise_is_gaussian_of_its_sigma_and_of_no_other(sigma):
    noise = gaussian({"a": (100, 30), "b": (2000,)}, sigma, stream()).parts
    values = torch.cat([part.flatten() for part in noise.values()]).double().numpy()
    assert kstest(values, norm(0, sigma).cdf).pvalue > 0.01
    for wrong in (2 / 3 * sigma, 3 / 2 * sigma):
        assert kstest(values, norm(0, wrong).cdf).pvalue < 1e-6


def test_the_tails_are_those_of_a_gaussian():
    values = drawn(shapes={"a": (2_000_000,)})["a"]
    for beyond in (3.0, 4.0, 4.5):
        expected = 2_000_000 * 2 * norm.sf(beyond)
        assert abs(float((values.abs() > beyond).sum()) - expected) < 5 * expected**0.5
    assert 4.7 < float(values.abs().max()) < 6.8


def test_parts_and_coordinates_are_independent():
    noise = drawn(shapes={"a": (20_000,), "b": (20_000,)})
    a = noise["a"]
    half = CHUNK // 2
    pairs = [(a, noise["b"]), (a[1:], a[:-1])]
    # the two numbers of a pair, and the squares of them, which a common radius would tie together
    pairs += [(a[:half], a[half:CHUNK]), (a[:half].square(), a[half:CHUNK].square())]
    for left, right in pairs:
        assert abs(torch.corrcoef(torch.stack([left, right]))[0, 1]) < 4 / len(left) ** 0.5


def test_a_second_draw_differs_and_the_global_random_state_is_left_alone():
    generator = stream()
    before = torch.get_rng_state()
    one = gaussian(SHAPES, 1.0, generator)
    two = gaussian(SHAPES, 1.0, generator)
    assert one.fingerprint != two.fingerprint
    assert fingerprint(one.parts) != fingerprint(two.parts)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf"), 1e-31, 1e31])
def test_refuses_what_is_no_standard_deviation(std):
    with pytest.raises(ValueError, match="standard deviation"):
        gaussian(SHAPES, std, stream())


def test_the_noises_fingerprint_is_that_of_its_stream_whatever_its_size_of_step():
    one, two = (gaussian({"a": (40_000,)}, std, stream()) for std in (1.0, 2.5))
    assert (
        one.fingerprint == two.fingerprint != gaussian({"a": (40_000,)}, 1.0, stream(1)).fingerprint
    )
    assert one.fingerprint == 3059526390  # on every processor
