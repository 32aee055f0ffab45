"""`python -m dinoreg_rt` is `dinoreg-rt`."""

from .commands.main import main

main()
