"""Initial alignment: an affine transform that brings the moving image close to the fixed one."""
