"""The terminal: progress, standard output and interruption."""
