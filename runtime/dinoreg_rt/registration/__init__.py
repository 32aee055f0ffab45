"""One registration: planning, execution and its result."""
