"""Statistics that are released with noise, and what is read off them."""
