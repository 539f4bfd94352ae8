"""Elements with code of their own in the browser."""
