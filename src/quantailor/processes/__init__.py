"""Processes that end with us.

apart     functions of ours in a process of its own, because the library that they call may end it
worker    that process
crews     work that is made of tasks, and who does it
messages  what the two say to each other
child     programs of others: llama.cpp's converter, pip and venv
runner    what ends them with us; it needs the standard library alone
"""
