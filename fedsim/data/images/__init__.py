"""Sets of images, one source a file."""
