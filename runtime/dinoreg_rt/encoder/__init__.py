"""Features of a frozen encoder: bundle, slices, tokens, joint PCA, samples on the solver grid."""
