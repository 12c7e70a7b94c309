"""What every fresh process of a check finds in memory: fedsim, what torch imports at the first ``vmap``, and the list of entry points.

No algorithm is among it.
"""

import torch._dynamo  # noqa: F401

import fedsim.kit.check
import fedsim.models.cvae
import fedsim.models.hypernetwork
import fedsim.models.kernel
import fedsim.models.moments
import fedsim.models.posterior
import fedsim.one_shot  # noqa: F401
from fedsim.registry import known

known()
