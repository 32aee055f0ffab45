"""A registration with files around it: inputs, outputs, report and pictures."""
