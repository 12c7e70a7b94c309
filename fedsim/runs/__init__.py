"""Cells on Ray: workers, slots, the scheduler and the live view."""

import atexit
import gc

# as in fedsim.cli.app; here, for a worker imports this before everything else
gc.set_threshold(*gc.get_threshold()[:2], 100)
atexit.register(gc.freeze)
