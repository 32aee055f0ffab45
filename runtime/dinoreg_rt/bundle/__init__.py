"""Encoder bundles: a manifest, the graphs that it lists, and the checkpoints they come from."""
