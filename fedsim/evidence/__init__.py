"""The kit for adding an algorithm: what there is, a method to start from, and checks of what it must keep."""
