"""What a verdict's files are, and what evaluations of them cost beside their scores."""

from __future__ import annotations

from collections.abc import Sequence

from quantailor.app.measuring.counted import Counted, Making, Pipeline, StageEstimate, scaled_by
from quantailor.costs.machine import Range
from quantailor.costs.seconds import Seconds, write_seconds
from quantailor.pipeline import LadderStep, MakeStep
from quantailor.steps.judged.evaluating import tokens_of_file
from quantailor.steps.plan import PlanOptions

EVALS = "evaluations"
"""What comes after a verdict's scores."""
ALONE: Range = (1.0, 3.0)
"""What a token that is run alone takes over what is counted for it: small models take longer to begin a graph than to run it."""
USUAL_PRESETS = 2
"""Of a verdict: those on either side of the file's size, or the one that has it."""


def judged_files(task: Pipeline) -> tuple[Sequence[PlanOptions], int, int]:
    """Of a verdict the plans of our files, the presets, and all files but the base."""
    plans = list(task.asked.values()) if isinstance(task, LadderStep) else [task.plan] if isinstance(task, MakeStep) else []
    against = task.against if isinstance(task, Making) else None
    named = {plan.like for plan in plans if plan.like}
    n_presets = (
        len(against) if against is not None else len(named) + USUAL_PRESETS * sum(not plan.like for plan in plans or [PlanOptions()])
    )
    return plans, n_presets, max(1, len(plans)) + n_presets + (isinstance(task, MakeStep) and task.beside is not None)


def evaluations(at: Counted) -> StageEstimate:
    """The same files asked, after all of them are there; tokens count as chunks of the text's length. Raises TypeError for a study."""
    if not isinstance(at.task, Making):
        raise TypeError(f"a {at.task.kind} has no evaluations")
    evals, (*_, n_others) = at.task.evals, judged_files(at.task)
    everything = (1 + n_others) * tokens_of_file(evals)
    tokens = at.eval_tokens(evals, n_others)
    share = max(0.0, 1.0 - tokens / everything) if everything else 1.0
    loading = Seconds(beside=scaled_by(write_seconds(at.size.tensor_bytes), 1 + n_others))
    left, total = (at.scoring(n_tokens / at.n_ctx).times(*ALONE) + loading for n_tokens in (tokens, everything))
    n_chunks = tokens / at.n_ctx
    return at.estimate(EVALS, left, total, share, 0, at.running_bytes(), passes=(n_chunks, n_chunks))
