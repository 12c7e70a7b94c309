"""Algorithms by name: looked up, hashed, named in messages, and what they may claim."""
