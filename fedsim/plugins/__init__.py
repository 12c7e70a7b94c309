"""Algorithms by name: found, hashed, blamed in messages, and what they may claim."""
