"""What Python and the command line do: a function a task; :mod:`fedsim` has their names, and the
commands call them.
"""
