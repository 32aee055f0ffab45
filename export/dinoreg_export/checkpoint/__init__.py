"""Reading of checkpoints in any layout, as one canonical set of parameters."""
