"""Measure: what to measure and what it costs; then the map and the curves as they fill in."""
