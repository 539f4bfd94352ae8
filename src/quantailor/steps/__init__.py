"""The steps of the way: each file is the whole of its step."""
