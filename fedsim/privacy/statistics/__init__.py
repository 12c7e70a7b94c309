"""Statistics that are released with noise, and the estimates that are made from them."""
