"""What steps refuse before any work."""
