"""Verify: what a built file is worth."""
