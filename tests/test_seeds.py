import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.seeds import SERVER, Purpose, Seeds

streams = st.tuples(st.sampled_from(Purpose), st.integers(0, 2**32 - 1), st.integers(SERVER, 10_000))
roots = st.integers(0, 2**63 - 1)


@settings(max_examples=50)
@given(roots, streams)
def test_a_stream_is_a_function_of_its_name(root: int, stream: tuple[Purpose, int, int]) -> None:
    assert np.array_equal(Seeds(root).numpy(*stream).random(4), Seeds(root).numpy(*stream).random(4))
    assert torch.equal(torch.randn(4, generator=Seeds(root).torch(*stream)), torch.randn(4, generator=Seeds(root).torch(*stream)))


@settings(max_examples=50)
@given(roots, roots, streams, streams)
def test_streams_of_different_names_differ(
    root: int, other: int, first: tuple[Purpose, int, int], second: tuple[Purpose, int, int]
) -> None:
    same = (root, first) == (other, second)
    one, two = Seeds(root), Seeds(other)
    assert np.array_equal(one.numpy(*first).random(4), two.numpy(*second).random(4)) == same
    drawn = torch.randn(4, generator=one.torch(*first)), torch.randn(4, generator=two.torch(*second))
    assert torch.equal(*drawn) == same


def test_a_small_tree_has_no_two_equal_torch_seeds() -> None:
    seeds = [
        Seeds(root).torch(purpose, round_, client).initial_seed()
        for root in range(3)
        for purpose in Purpose
        for round_ in range(10)
        for client in range(SERVER, 10)
    ]
    assert len(set(seeds)) == len(seeds)


def test_purposes_keep_their_numbers() -> None:
    """A changed number would change every result under the same seed."""
    numbers = {purpose.name: purpose.value for purpose in Purpose}
    expected = {"PARTITION": 1, "INIT": 2, "SAMPLING": 3, "NOISE": 4, "LATENT": 5, "SYNTHESIS": 6, "META": 7, "PROBE": 8, "LOCAL": 9}
    assert numbers | expected == numbers
    assert len(set(numbers.values())) == len(numbers)


def test_golden_draws() -> None:
    assert Seeds(0).numpy(Purpose.NOISE, 3, 2).integers(2**32) == 3526774343
    assert Seeds(0).torch(Purpose.NOISE, 3, 2).initial_seed() == 4166542727289996375


def test_a_negative_root_is_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        Seeds(-1).sequence(Purpose.INIT)
