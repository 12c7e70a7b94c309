"""What runs a grid: jobs that write result lines, the scheduler, the engines (Ray is imported here alone), and the live view."""

from fedsim.garbage import look_rarely

look_rarely()  # here, for a worker imports this before everything else
