"""What an author of a method reads and derives from."""
