"""Encoder bundles: manifests, opening and checks, and checkpoints given instead of a bundle."""
