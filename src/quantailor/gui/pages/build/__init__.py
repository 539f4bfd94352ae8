"""Build: from a strategy to a file, checked."""
