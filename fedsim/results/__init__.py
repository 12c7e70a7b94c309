"""What a run leaves behind: result lines, the rows that are joined of them, and what its trainings
made.
"""
