"""Features computed by an encoder: slices, tokens and the joint PCA."""
