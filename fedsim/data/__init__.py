"""Data sets: embeddings with labels and a split, loaded, validated and normalised."""
