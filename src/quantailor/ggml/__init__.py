"""The native boundary: the only ctypes in the project."""
