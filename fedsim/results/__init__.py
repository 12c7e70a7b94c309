"""The results of a run: lines, the results that are joined of them, and saved generators."""
