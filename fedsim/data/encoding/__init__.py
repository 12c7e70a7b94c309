"""Images to embeddings, computed once."""
