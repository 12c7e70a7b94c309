"""What every fresh process of a check finds in memory: fedsim and the list of entry points.

No algorithm is among it. Ctrl-C ends such a process at once and without a traceback.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

from fedsim.kit.checks import budget, canary, noise, per_example, repeat, sensitivity, traces  # noqa: E402, F401
from fedsim.methods.registry import known  # noqa: E402

known()
