"""What runs a grid: jobs that write result lines, the scheduler, the engines (Ray is imported here
alone), and the live view.
"""

import atexit
import gc

# as in fedsim.cli; here, for a worker imports this before everything else
gc.set_threshold(*gc.get_threshold()[:2], 100)
atexit.register(gc.freeze)
