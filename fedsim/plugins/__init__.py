"""Algorithms by name: finds and hashes their code, and says what they may claim."""
