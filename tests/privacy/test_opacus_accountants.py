import subprocess
import sys

import opacus.accountants
import pytest
from opacus.accountants.analysis.rdp import compute_rdp

from fedsim.privacy.mechanism import Mechanism
from fedsim.privacy.opacus_accountants import PRVAccountant

MECHANISMS = [
    Mechanism(1.3),
    Mechanism(0.8, 0.05, 20),
]
EPSILON = """
import sys
from fedsim.privacy.accountant import epsilon
from fedsim.privacy.mechanism import Mechanism
assert epsilon([Mechanism(1.3)], 1e-5)[1] == "prv"
print({"opacus", "torch"} & {*sys.modules})
"""


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_divergence_is_that_of_opacus(mechanism: Mechanism) -> None:
    expected = compute_rdp(
        q=mechanism.sample_rate,
        noise_multiplier=mechanism.noise_multiplier,
        steps=mechanism.count,
        orders=2.5,
    )
    assert mechanism.divergence(2.5) == expected


def test_prv_accountant_is_that_of_opacus() -> None:
    history = [(one.noise_multiplier, one.sample_rate, one.count) for one in MECHANISMS]
    theirs = opacus.accountants.PRVAccountant()
    theirs.history = history
    ours = PRVAccountant()
    ours.history = history
    assert ours.get_epsilon(1e-5) == theirs.get_epsilon(1e-5)


def test_epsilon_loads_no_other_part_of_opacus() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EPSILON],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"
