"""Processes that end with us, and work that is done in one because the library it calls may end it."""
