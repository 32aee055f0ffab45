"""From images to the encoder's features: slices, tokens and the joint PCA."""
