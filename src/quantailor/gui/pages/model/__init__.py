"""Model: open a repository, a directory or a file, and what is known of one that was opened."""
