from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.seeds import SECRET, SERVER, Purpose, Seeds

public = st.sampled_from([purpose for purpose in Purpose if purpose not in SECRET])
streams = st.tuples(
    public,
    st.integers(0, 2**32 - 1),
    st.integers(SERVER, 10_000),
)
secret_streams = st.tuples(
    st.sampled_from(sorted(SECRET)), st.integers(0, 2**40 - 1), st.integers(SERVER, 2**32 - 2)
)
roots = st.integers(0, 2**63 - 1)


@settings(max_examples=50)
@given(roots, roots, streams, streams)
def test_streams_of_different_names_differ(
    root: int, other: int, first: tuple[Purpose, int, int], second: tuple[Purpose, int, int]
) -> None:
    same = (root, first) == (other, second)
    one = Seeds(root)
    two = Seeds(other)
    assert np.array_equal(one.numpy(*first).random(4), two.numpy(*second).random(4)) == same
    drawn = (
        torch.randn(4, generator=one.torch(*first)),
        torch.randn(4, generator=two.torch(*second)),
    )
    assert torch.equal(*drawn) == same


@settings(max_examples=50)
@given(roots, roots, secret_streams, secret_streams)
def test_secret_streams_of_different_names_differ(
    root: int, other: int, first: tuple[Purpose, int, int], second: tuple[Purpose, int, int]
) -> None:
    same = (root, first) == (other, second)
    one = Seeds(root).keystream(*first).words(4)
    two = Seeds(other).keystream(*second).words(4)
    assert np.array_equal(one, two) == same
    assert np.array_equal(one, Seeds(root).keystream(*first).words(4))


def test_secret_root_alone_decides_noise_samples_and_row_draws() -> None:
    open_ = Seeds(0)
    one = Seeds(0, secret=1)
    two = Seeds(5, secret=1)
    for purpose in Purpose:
        secret = purpose in (
            Purpose.NOISE,
            Purpose.SAMPLING,
            Purpose.LATENT,
            Purpose.LOCAL,
            Purpose.HELD_OUT,
            Purpose.SELECTION,
        )
        first, second, third = (
            (
                tree.keystream(purpose, 2, 3).uniform(1)
                if secret
                else tree.numpy(purpose, 2, 3).random(1)
            )
            for tree in (open_, one, two)
        )
        assert (first != second) == secret
        assert (second == third) == secret


@pytest.mark.parametrize("purpose", Purpose)
def test_only_secret_streams_come_from_the_cipher(purpose: Purpose) -> None:
    doors: list[Callable[[Purpose], object]] = [Seeds(0).numpy, Seeds(0).torch, Seeds(0).keystream]
    if purpose in SECRET:
        closed = doors[:2]
    else:
        closed = doors[2:]
    for door in doors:
        with (
            pytest.raises(ValueError, match=f"the stream {purpose.name} is")
            if door in closed
            else nullcontext()
        ):
            door(purpose)


def test_secret_root_is_not_printed() -> None:
    assert "1234567" not in repr(Seeds(0, secret=1234567))


def test_golden_draws() -> None:
    assert Seeds(0).numpy(Purpose.META, 3, 2).integers(2**32) == 554267919
    assert Seeds(0).keystream(
        Purpose.NOISE,
        3,
        2,
    ).words(2).tolist() == [1901789736, 1039423227]
    assert (
        torch.randint(
            2**31,
            (1,),
            generator=Seeds(0).torch(Purpose.META, 3, 2),
        ).item()
        == 1697379311
    )


def test_server_cannot_draw_secret_streams() -> None:
    seeds = Seeds(3, secret=5)
    assert seeds.public.numpy(Purpose.META).random() == Seeds(3).public.numpy(Purpose.META).random()
    assert seeds.public.secret is None
    for purpose in SECRET:
        with pytest.raises(
            ValueError,
            match=f"the stream {purpose.name} is drawn at the clients and by the harness",
        ):
            seeds.public.keystream(purpose)


def test_root_of_a_server_does_not_draw_the_noise() -> None:
    for root in (0, 3, 2**63 - 1):
        noise, again = (
            seeds.keystream(Purpose.NOISE).words(4).tolist()
            for seeds in (Seeds(root), Seeds(Seeds(root).public.root))
        )
        assert noise != again
