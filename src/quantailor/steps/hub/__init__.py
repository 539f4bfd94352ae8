"""Models of the hub in a job."""
