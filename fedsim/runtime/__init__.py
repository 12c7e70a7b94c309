"""Running cells on Ray: cohorts, trials, the scheduler and the live view."""
