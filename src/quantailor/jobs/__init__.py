"""Jobs: long work that can be watched, paused, resumed and cancelled, here or in a process of its own."""

from quantailor.jobs.home import Home, resolve
from quantailor.jobs.job_control import JobControl, Listener
from quantailor.jobs.outline import Phase
from quantailor.jobs.process import is_alive, spawn_detached, this_worker
from quantailor.jobs.requests import reconcile, remove, request_cancel, request_pause, resume, submit
from quantailor.jobs.runner import run
from quantailor.jobs.turns import Turns, job_ahead
from quantailor.store import Job, Progress, Worker
