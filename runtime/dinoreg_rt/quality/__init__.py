"""How good a registration is, and whether to trust it."""
