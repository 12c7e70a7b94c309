"""What every fresh process of a check finds in memory: fedsim and the list of entry points.

No algorithm is among it.
"""

from fedsim.kit.checks import budget, noise, per_example, repeat, sensitivity, traces  # noqa: F401
from fedsim.methods.registry import known

known()
