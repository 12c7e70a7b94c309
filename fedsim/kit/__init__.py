"""The kit of those who write algorithms: what is known, a new file to start from."""
