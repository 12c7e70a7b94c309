"""What runs a grid: jobs that write result lines, the scheduler, the engines (Ray is imported here
alone), and the live view.
"""

import atexit
import gc

# a tenth as many searches for garbage in all there is, and none at the end, saves a fifth of the
# time that torch and Ray take to load; a worker imports this before everything else
gc.set_threshold(*gc.get_threshold()[:2], 100)
atexit.register(gc.freeze)
