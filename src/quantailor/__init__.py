"""Cut a language model to measure: measure what each GGUF type costs in every tensor, choose, build, prove.

    import quantailor as q

    with q.open_model("demo/books-llama") as model:
        q.imatrix(model)
        q.measure(model)
        q.probe(model)
        strategy = q.plan(model, like="Q4_K_M")
        built = q.build(model, strategy, "books-llama.gguf")
        print(q.verify(model, built.paths[0]).sentence)

The names below are promised to stay. They are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantailor.app.api.choosing import compare, plan, predict, read_strategy, refine, write_strategy
    from quantailor.app.api.measuring import calibrate, imatrix, measure, probe, speed, study, sweep
    from quantailor.app.api.opening import Model, convert, download, inspect, open_model
    from quantailor.app.api.products import build, check, fit, ladder, make, verify
    from quantailor.errors import QuantailorError
    from quantailor.records import Strategy, Verdict
    from quantailor.steps.plan import PlanOptions

__all__ = [
    "Model",
    "PlanOptions",
    "QuantailorError",
    "Strategy",
    "Verdict",
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
    "speed",
    "study",
    "sweep",
    "verify",
    "write_strategy",
]

_NAMES = {
    "app.api.choosing": "compare plan predict read_strategy refine write_strategy",
    "app.api.measuring": "calibrate imatrix measure probe speed study sweep",
    "app.api.opening": "Model convert download inspect open_model",
    "app.api.products": "build check fit ladder make verify",
    "errors": "QuantailorError",
    "records": "Strategy Verdict",
    "steps.plan": "PlanOptions",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'quantailor' has no attribute {name!r}")
    return getattr(importlib.import_module(f"quantailor.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
