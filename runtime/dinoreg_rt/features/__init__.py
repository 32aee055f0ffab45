"""Features computed without an encoder."""
