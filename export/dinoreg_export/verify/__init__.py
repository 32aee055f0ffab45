"""Comparison of exported graphs with a NumPy reference."""
