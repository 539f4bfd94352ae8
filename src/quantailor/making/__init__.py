"""A file is built from a strategy, and judged by its scores."""
