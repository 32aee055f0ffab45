"""The terminal: progress, results on stdout, and interruption."""
