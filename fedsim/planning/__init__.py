"""Before anything runs: a grid made ready, plug-ins rehearsed, room and memory measured."""
