"""tuneyard's compute-node code: the supervisor, the ranks it starts, one module per stage."""
