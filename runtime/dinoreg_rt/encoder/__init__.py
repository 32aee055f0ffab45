"""Features of an encoder, from the images: slices, tokens and the joint PCA."""
