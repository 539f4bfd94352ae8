"""What work takes on this machine."""
