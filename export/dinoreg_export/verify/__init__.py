"""Verification of exported graphs against a NumPy reference."""
