"""The commands of `dinoreg-rt`, one module each: they parse, call, and print. Nothing else."""
