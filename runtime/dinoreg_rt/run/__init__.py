"""A registration with files around it: request, inputs, outputs and report."""
