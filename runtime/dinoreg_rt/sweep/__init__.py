"""Many configurations on many pairs."""
