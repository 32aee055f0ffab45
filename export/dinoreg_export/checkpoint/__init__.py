"""Reading checkpoints of any layout into one canonical set of parameters."""
