import numpy as np
import pytest
from scipy.stats import kstest

from fedsim.seeds import ZEROS, Keystream

KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
COUNTER = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")


def stream() -> Keystream:
    return Keystream(KEY, COUNTER)


def test_keystream_is_the_standards_counter_mode() -> None:
    """NIST SP 800-38A, F.5.5: the test vector's output blocks, which its plaintext is added to."""
    blocks = [
        "0bdf7df1591716335e9a8b15c860c502",
        "5a6e699d536119065433863c8f657b94",
        "1bc12c9c01610d5d0d8bd6a3378eca62",
        "2956e1c8693536b1bee99c73a31576b6",
    ]
    assert stream().words(16).tobytes().hex() == "".join(blocks)


@pytest.mark.parametrize(
    "parts",
    [
        (0, 1, 0),
        (3, 5, 1),
        (len(ZEROS) // 4, 1),
        (len(ZEROS) // 4 + 3, len(ZEROS)),
    ],
)
def test_keystream_continues_where_it_stopped(parts: tuple[int, ...]) -> None:
    one = stream()
    two = stream()
    assert np.array_equal(
        np.concatenate([one.words(count) for count in parts]), two.words(sum(parts))
    )


def test_uniform_numbers_are_uniform_and_have_53_bits() -> None:
    drawn = stream().uniform(20_000)
    assert kstest(drawn, "uniform").pvalue > 0.01
    assert 0 <= drawn.min() < drawn.max() < 1
    assert np.array_equal(drawn * 2**53 % 1, np.zeros(len(drawn)))
    assert (drawn * 2**53 % 2).mean() == pytest.approx(0.5, abs=0.02)
