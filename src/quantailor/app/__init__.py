"""What faces need: the home, and in its modules what they show and start.

steps       the steps that a job can run, with their options and results
jobs        submit, run here or detached, follow, pause, resume, cancel
library/    the models that somebody works on: projects, structure, experts, the hub
measuring/  how far a measurement is, what it costs, what it says
choosing/   strategies: planned while a slider moves, edited, compared, predicted
products/   files that were built: checked, judged, exported, described
"""

from __future__ import annotations

from quantailor.processes.heap import share_one_heap
from quantailor.session import Workspace
