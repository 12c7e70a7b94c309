"""What every fresh process of a check finds in memory: fedsim, its own methods, and what these import as late as they train.

Nothing of it has trained, and no plug-in is among it. Ctrl-C ends such a process at once and without a traceback.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

from importlib.metadata import entry_points  # noqa: E402

import sklearn.isotonic  # noqa: E402, F401
import torch.utils.serialization.config  # noqa: E402, F401

from fedsim.evidence.check import budget, noise, per_example, repeat, sensitivity, traces  # noqa: E402, F401
from fedsim.plugins.registry import GROUP, lookup  # noqa: E402

for entry in entry_points(group=GROUP):
    if entry.module.partition(".")[0] in ("algorithms", "baselines"):
        lookup(entry.name)
