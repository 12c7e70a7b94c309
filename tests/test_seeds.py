import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.seeds import SECRET, SERVER, Purpose, Seeds

StreamName = tuple[Purpose, int, int]

TREES = (
    Seeds(0),
    Seeds(0, secret=1),
    Seeds(5, secret=1),
)

public = st.sampled_from([purpose for purpose in Purpose if purpose not in SECRET])
streams = st.tuples(
    public,
    st.integers(0, 2**32 - 1),
    st.integers(SERVER, 10_000),
)
secret_streams = st.tuples(
    st.sampled_from(sorted(SECRET)),
    st.integers(0, 2**40 - 1),
    st.integers(SERVER, 2**32 - 2),
)
roots = st.integers(0, 2**63 - 1)


@settings(max_examples=50)
@given(roots, roots, streams, streams)
def test_streams_of_different_names_differ(
    root: int,
    other: int,
    first: StreamName,
    second: StreamName,
) -> None:
    same = (root, first) == (other, second)
    one = Seeds(root)
    two = Seeds(other)
    numbers = one.numpy(*first).random(4)
    other_numbers = two.numpy(*second).random(4)
    assert np.array_equal(numbers, other_numbers) == same
    drawn = torch.randn(
        4,
        generator=one.torch(*first),
    )
    drawn_by_other = torch.randn(
        4,
        generator=two.torch(*second),
    )
    assert torch.equal(drawn, drawn_by_other) == same


@settings(max_examples=50)
@given(roots, roots, secret_streams, secret_streams)
def test_secret_streams_of_different_names_differ(
    root: int,
    other: int,
    first: StreamName,
    second: StreamName,
) -> None:
    same = (root, first) == (other, second)
    one = Seeds(root).keystream(*first).words(4)
    two = Seeds(other).keystream(*second).words(4)
    again = Seeds(root).keystream(*first).words(4)
    assert np.array_equal(one, two) == same
    assert np.array_equal(one, again)


def test_noise_samples_and_draws_for_rows_are_secret() -> None:
    assert {purpose.name for purpose in SECRET} == {
        "NOISE",
        "SAMPLING",
        "LATENT",
        "LOCAL",
        "HELD_OUT",
        "SELECTION",
    }


@pytest.mark.parametrize("purpose", sorted(SECRET))
def test_secret_root_alone_decides_secret_streams(purpose: Purpose) -> None:
    without, first, second = (tree.keystream(purpose, 2, 3).uniform(1) for tree in TREES)
    assert without != first
    assert first == second
    for public_stream in (Seeds(0).numpy, Seeds(0).torch):
        with pytest.raises(ValueError, match=f"the stream {purpose.name} is secret"):
            public_stream(purpose)


@pytest.mark.parametrize("purpose", sorted({*Purpose} - SECRET))
def test_public_root_alone_decides_public_streams(purpose: Purpose) -> None:
    without, first, second = (tree.numpy(purpose, 2, 3).random(1) for tree in TREES)
    assert without == first
    assert first != second
    with pytest.raises(ValueError, match=f"the stream {purpose.name} is public"):
        Seeds(0).keystream(purpose)


def test_secret_root_is_not_printed() -> None:
    assert "1234567" not in repr(Seeds(0, secret=1234567))


def test_draws_are_those_that_were_recorded() -> None:
    seeds = Seeds(0)
    numbers = seeds.numpy(Purpose.META, 3, 2)
    assert numbers.integers(2**32) == 554267919
    noise = seeds.keystream(Purpose.NOISE, 3, 2).words(2)
    assert noise.tolist() == [1901789736, 1039423227]
    drawn = torch.randint(
        2**31,
        (1,),
        generator=seeds.torch(Purpose.META, 3, 2),
    )
    assert drawn.item() == 1697379311


def test_server_draws_public_streams_of_its_own() -> None:
    server = Seeds(3, secret=5).public
    assert server.secret is None
    drawn = server.numpy(Purpose.META).random()
    drawn_without_secret = Seeds(3).public.numpy(Purpose.META).random()
    assert drawn == drawn_without_secret


@pytest.mark.parametrize("purpose", sorted(SECRET))
def test_server_cannot_draw_secret_streams(purpose: Purpose) -> None:
    message = f"a server may not draw from the stream {purpose.name}, which only clients and fedsim"
    server = Seeds(3, secret=5).public
    with pytest.raises(ValueError, match=message):
        server.keystream(purpose)


@pytest.mark.parametrize("root", [0, 3, 2**63 - 1])
def test_root_of_a_server_does_not_draw_the_noise(root: int) -> None:
    seeds = Seeds(root)
    of_server = Seeds(seeds.public.root)
    noise = seeds.keystream(Purpose.NOISE).words(4)
    again = of_server.keystream(Purpose.NOISE).words(4)
    assert noise.tolist() != again.tolist()
