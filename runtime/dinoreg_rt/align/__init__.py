"""Initial alignment: an affine transform that brings two images onto each other."""
