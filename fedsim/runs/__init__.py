"""Cells on Ray: workers, slots, the scheduler and the live view."""

from fedsim.garbage import look_rarely

look_rarely()  # here, for a worker imports this before everything else
