"""The quality of a registration, and whether to trust it."""
