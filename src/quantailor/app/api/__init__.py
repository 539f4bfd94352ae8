"""Quantailor in a notebook or a script: a model is opened once, and functions measure it, choose its types, build and judge files.

Every function that takes long runs as a job of the home: it can be interrupted and called again, `quantailor jobs` and the GUI
show it, and what it measured is there for the next call, the command line and the GUI alike. Functions raise subclasses of
`QuantailorError` only.
"""

from __future__ import annotations

from quantailor.app.api.choosing import compare, plan, predict, read_strategy, refine, write_strategy
from quantailor.app.api.measuring import calibrate, imatrix, measure, probe, study, sweep
from quantailor.app.api.opening import Model, convert, download, inspect, open_model
from quantailor.app.api.products import build, check, fit, ladder, make, verify

__all__ = [
    "Model",
    "build",
    "calibrate",
    "check",
    "compare",
    "convert",
    "download",
    "fit",
    "imatrix",
    "inspect",
    "ladder",
    "make",
    "measure",
    "open_model",
    "plan",
    "predict",
    "probe",
    "read_strategy",
    "refine",
    "study",
    "sweep",
    "verify",
    "write_strategy",
]
