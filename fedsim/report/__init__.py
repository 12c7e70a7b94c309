"""The report of a run folder, drawn from its rows and manifest alone."""
