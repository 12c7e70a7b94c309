"""Where data sets come from: those known by name, image folders and tables, hubs, and ``.npz``
files of embeddings.
"""
