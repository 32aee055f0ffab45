"""The command line, with one module per command that parses options, calls and prints."""
