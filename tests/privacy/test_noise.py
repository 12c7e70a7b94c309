import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, norm

from fedsim.privacy.noise import fingerprint, gaussian
from fedsim.seeds import SERVER, Purpose, Seeds

SHAPES = {"weight": (40, 50), "bias": torch.Size([50]), "scale": ()}


def stream(seed=0, round_=0, client=SERVER):
    return Seeds(seed).torch(Purpose.NOISE, round_, client)


@pytest.mark.parametrize("sigma", [0.01, 1.0, 7.5])
def test_the_noise_is_gaussian_of_its_sigma_and_of_no_other(sigma):
    noise = gaussian({"a": (100, 30), "b": (2000,)}, sigma, stream())
    values = torch.cat([part.flatten() for part in noise.values()]).double().numpy()
    assert kstest(values, norm(0, sigma).cdf).pvalue > 0.01
    for wrong in (2 / 3 * sigma, 3 / 2 * sigma):
        assert kstest(values, norm(0, wrong).cdf).pvalue < 1e-6


def test_parts_and_coordinates_are_independent():
    noise = gaussian({"a": (20_000,), "b": (20_000,)}, 1.0, stream())
    pairs = [(noise["a"], noise["b"]), (noise["a"][1:], noise["a"][:-1])]
    for left, right in pairs:
        assert abs(torch.corrcoef(torch.stack([left, right]))[0, 1]) < 4 / 20_000**0.5


def test_shapes_names_and_type():
    noise = gaussian(SHAPES, 1.0, stream())
    assert {name: part.shape for name, part in noise.items()} == {name: torch.Size(shape) for name, shape in SHAPES.items()}
    assert {part.dtype for part in noise.values()} == {torch.float32}


def test_all_parts_come_from_one_draw():
    noise = gaussian(SHAPES, 3.0, stream())
    flat = torch.randn(2051, generator=stream()) * 3.0
    assert torch.equal(torch.cat([part.flatten() for part in noise.values()]), flat)


def test_the_stream_goes_on():
    generator = stream()
    assert fingerprint(gaussian(SHAPES, 1.0, generator)) != fingerprint(gaussian(SHAPES, 1.0, generator))


def test_no_noise_is_zeros_and_leaves_the_stream_alone():
    generator = stream()
    noise = gaussian(SHAPES, 0.0, generator)
    assert all(not part.any() for part in noise.values())
    assert {name: part.shape for name, part in noise.items()} == {name: torch.Size(shape) for name, shape in SHAPES.items()}
    assert torch.equal(generator.get_state(), stream().get_state())


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    gaussian(SHAPES, 1.0, stream())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf")])
def test_refuses_what_is_no_standard_deviation(std):
    with pytest.raises(ValueError, match="standard deviation"):
        gaussian(SHAPES, std, stream())


def test_the_same_stream_gives_the_same_bits():
    assert fingerprint(gaussian(SHAPES, 1.0, stream(5, 2, 3))) == fingerprint(gaussian(SHAPES, 1.0, stream(5, 2, 3)))


a_stream = st.tuples(st.integers(0, 3), st.integers(0, 300), st.integers(SERVER, 1000))


@settings(max_examples=50)
@given(a_stream, a_stream)
def test_two_streams_differ_in_every_coordinate(one, other):
    left, right = (gaussian({"a": (64,)}, 1.0, stream(*which))["a"] for which in (one, other))
    assert torch.equal(left, right) == (one == other)
    if one != other:
        # float32 normals coincide by chance with probability about 1e-7 a coordinate
        assert (left == right).sum() <= 1


def test_all_streams_of_a_run_differ():
    prints = [
        fingerprint(gaussian({"a": (8,)}, 1.0, stream(0, round_, client)))
        for round_, client in itertools.product(range(20), range(SERVER, 50))
    ]
    # 1020 different 32-bit fingerprints: one chance coincidence has probability 1e-4, and the seeds are fixed
    assert len(set(prints)) == len(prints)


def test_noise_is_not_another_purposes_stream():
    others = [Seeds(0).torch(purpose) for purpose in Purpose if purpose is not Purpose.NOISE]
    mine = fingerprint(gaussian(SHAPES, 1.0, stream()))
    assert mine not in [fingerprint(gaussian(SHAPES, 1.0, other)) for other in others]


def test_a_fingerprint_sees_one_bit_and_not_the_order_of_insertion():
    noise = gaussian(SHAPES, 1.0, stream())
    assert fingerprint(dict(reversed(noise.items()))) == fingerprint(noise)
    changed = {name: part.clone() for name, part in noise.items()}
    changed["bias"][7] = torch.nextafter(changed["bias"][7], torch.tensor(9.0))
    assert fingerprint(changed) != fingerprint(noise)
    assert fingerprint({"a": torch.zeros(2, 3).T}) == fingerprint({"a": torch.zeros(3, 2)})


def test_a_client_that_sampled_nothing_has_a_fingerprint_too() -> None:
    nothing = torch.from_numpy(np.empty(0, np.int64))
    assert fingerprint({"rows": nothing}) == fingerprint({"rows": torch.zeros(0, dtype=torch.long)})
    assert fingerprint({"rows": nothing}) != fingerprint({"rows": torch.zeros(1, dtype=torch.long)})
