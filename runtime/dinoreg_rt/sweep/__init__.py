"""Sweeps: many configurations tried on many pairs."""
