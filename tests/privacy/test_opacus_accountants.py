import subprocess
import sys

from opacus.accountants import PRVAccountant
from opacus.accountants.analysis.rdp import compute_rdp

from fedsim.privacy.opacus_accountants import opacus_accountants

HISTORY = [(1.1, 0.05, 100), (4.0, 1.0, 2)]


def test_they_say_to_the_last_bit_what_opacus_says():
    own, theirs = opacus_accountants("prv").PRVAccountant(), PRVAccountant()
    own.history, theirs.history = list(HISTORY), list(HISTORY)
    assert own.get_epsilon(1e-5) == theirs.get_epsilon(1e-5)
    asked = {"q": 0.05, "noise_multiplier": 1.1, "steps": 100, "orders": 8.5}
    assert opacus_accountants("analysis.rdp").compute_rdp(**asked) == compute_rdp(**asked)


def test_a_budget_is_solved_without_torch():
    code = (
        "import sys\n"
        "from fedsim.privacy.plan import Release, calibrate\n"
        "common = dict(unit='example', trust='aggregate', scope='all', claim='proved', clip=1.0, sensitivity=1.0)\n"
        "calibrate(epsilon=1.01234, delta=1e-4, releases=[Release('gradients', 0.1, 20)], **common)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
