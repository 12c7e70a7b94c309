"""Readers of data sets: sets known by name, image folders, image tables, and ``.npz`` files."""
