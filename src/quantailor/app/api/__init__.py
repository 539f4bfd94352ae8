"""Quantailor in a notebook or a script: a model is opened once, and functions measure it, choose its types, build and judge files.

Every function that takes long runs as a job of the home: it can be interrupted and called again, `quantailor jobs` and the GUI
show it, and what it measured is there for the next call, the command line and the GUI alike. Functions raise subclasses of
`QuantailorError` only.
"""
