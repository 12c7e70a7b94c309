"""The report of a run folder, drawn from the files in it alone."""
