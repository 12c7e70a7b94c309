"""What every fresh process of a check finds in memory: fedsim, what torch imports at the first ``vmap``, and the list of entry points.

No algorithm is among it.
"""

import torch._dynamo  # noqa: F401

import fedsim.kit.check
import fedsim.methods.one_shot  # noqa: F401
from fedsim.methods.registry import known

known()
