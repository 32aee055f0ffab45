"""Displacement fields: the solver, warping and inversion."""
