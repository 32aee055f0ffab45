"""Where a registration runs: CPU or GPU, its limits, streams and placement."""
