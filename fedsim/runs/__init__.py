"""The code that runs a grid: jobs that write result lines, the scheduler, engines and the display.

Only :mod:`fedsim.runs.ray` imports Ray.
"""

import atexit
import gc

# Ten times fewer searches for garbage in all objects, and none at the end of the process, save a
# fifth of the time that torch and Ray take to load. A worker imports this before everything else.
gc.set_threshold(*gc.get_threshold()[:2], 100)
atexit.register(gc.freeze)
