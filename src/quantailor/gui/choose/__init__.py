"""The Choose screen, part by part."""
