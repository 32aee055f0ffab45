"""`python -m dinoreg_rt` is `dinoreg-rt`."""

from .cli import main

main()
