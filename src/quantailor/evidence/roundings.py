"""How weights are to be rounded: what `--rounding`, `--covariances` and a strategy's record come to for one model."""

from __future__ import annotations

import re
from collections.abc import Callable

from quantailor.analysis.covariances.covariances import Covariances
from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.analysis.rounding.rounding import COMPENSATED, PLAIN_MEASURED, Rounding
from quantailor.errors import CovarianceError, StrategyError
from quantailor.evidence.grounds import command_line, is_current
from quantailor.evidence.measurements import measured
from quantailor.evidence.strategies import rounding_of, strategy_imatrix
from quantailor.records import RoundingWish, Strategy
from quantailor.session import AUTO, NONE, OpenedModel, Workspace

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


def is_fingerprint(wanted: str) -> bool:
    """Whether `--covariances` names some of the home by the beginning of their fingerprint, and no file."""
    return _FINGERPRINT.fullmatch(wanted) is not None


def covariances_of(workspace: Workspace, model: OpenedModel, wanted: str) -> Covariances | None:
    """The input covariances that `--covariances` means, or those of the home whose fingerprint begins like that.

    Raises CovarianceError where they are gone or cannot be used.
    """
    if not is_fingerprint(wanted):
        return workspace.covariances.choose(model, wanted)
    place = workspace.covariances.path(model.fingerprint, wanted)
    if not place.is_file():
        raise CovarianceError(
            f"input covariances {wanted} of {model.source.name} are not at {place}",
            remedy="Compute them again with `quantailor calibrate`, or name their file with --covariances",
        )
    return workspace.covariances.choose(model, str(place))


def measuring_rounding(workspace: Workspace, model: OpenedModel, imatrix: Imatrix | None, wish: RoundingWish, covariances: str) -> Rounding:
    """The rounding to measure weight errors of, plain unless compensated is asked for; with covariances wherever there are any.

    Raises:
        CovarianceError: compensated rounding without covariances, or ones that cannot be used.
    """
    found = covariances_of(workspace, model, covariances)
    if wish != "compensated":
        return Rounding(imatrix, found)
    if found is None:
        raise CovarianceError(
            f"compensated rounding needs input covariances, and there are none of {model.source.name}",
            remedy=f"Run `{command_line(workspace, 'calibrate', model.source.location)}` first",
        )
    return Rounding(imatrix, found, compensated=True)


def named_rounding(workspace: Workspace, model: OpenedModel, wish: RoundingWish, covariances: str) -> str:
    """What `measured` takes for `--rounding` and `--covariances`: one `Rounding.key` where covariances are named, or "none".

    "auto" is then compensated rounding where that was measured with them. Raises CovarianceError as `measuring_rounding`.
    """
    if covariances == AUTO:
        return wish
    found = measuring_rounding(workspace, model, None, wish, covariances)
    if wish == AUTO and found.covariances is not None:
        compensated = Rounding(None, found.covariances, compensated=True).key
        if any(key.rounding == compensated and is_current(key) for key in workspace.store.measurements(model.fingerprint)):
            return compensated
    return found.key


def measured_key(workspace: Workspace, model: str, wish: RoundingWish, covariances: str) -> str:
    """`Rounding.key` of what a job measures, without opening anything; a file that it names is kept as the model's newest."""
    found = [record.fingerprint[:16] for record in workspace.store.covariances(model)]
    there = [key for key in found if workspace.covariances.path(model, key).exists()]
    if covariances == NONE or not there:
        return ""
    return f"{COMPENSATED if wish == 'compensated' else PLAIN_MEASURED}:{covariances if covariances in there else there[0]}"


def writing_rounding(workspace: Workspace, model: OpenedModel, imatrix: Imatrix | None, wish: RoundingWish, covariances: str) -> Rounding:
    """The rounding to write or swap weights in with: the same, without covariances where it is plain. Raises CovarianceError."""
    return measuring_rounding(workspace, model, imatrix, wish, covariances) if wish == "compensated" else Rounding(imatrix)


def probing_rounding(
    workspace: Workspace, model: OpenedModel, imatrix: str, wish: RoundingWish, covariances: str, tell: Callable[[str], None]
) -> Rounding:
    """The rounding to score mixes with: "auto" is that of the weight errors that a plan would take. `tell` hears what a user should know.

    Raises:
        CovarianceError: compensated rounding without covariances, or ones that cannot be used.
        ImatrixError: an importance matrix that cannot be used.
    """
    matrix = workspace.imatrices.choose(model, imatrix, tell)
    if wish == AUTO:
        try:
            key = measured(workspace, model, imatrix).key
        except StrategyError:
            return Rounding(matrix)
        if key.swapped:
            wish, covariances = "compensated", key.covariances if covariances == AUTO else covariances
    return writing_rounding(workspace, model, matrix, wish, covariances)


def strategy_rounding(
    workspace: Workspace,
    model: OpenedModel,
    strategy: Strategy,
    *,
    imatrix: str = AUTO,
    wish: RoundingWish = "auto",
    covariances: str = AUTO,
) -> Rounding:
    """The rounding to build a strategy's file with: what the strategy records, unless told otherwise.

    Raises:
        CovarianceError: compensated rounding without covariances, or ones that cannot be used.
        ImatrixError: an importance matrix that cannot be used.
    """
    matrix = strategy_imatrix(workspace, model, strategy, imatrix)
    is_recorded = rounding_of(strategy) == "compensated"
    if wish == AUTO:
        wish = "compensated" if is_recorded else "plain"
    if covariances == AUTO and is_recorded:
        covariances = str(strategy.inputs.get("covariances") or AUTO)
    return writing_rounding(workspace, model, matrix, wish, covariances)
