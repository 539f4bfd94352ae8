"""The commands, a module for each part of the way; importing one hangs its commands on the root."""
