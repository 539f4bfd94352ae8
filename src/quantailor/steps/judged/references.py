"""llama.cpp's presets in a verdict: files that are made for it, and what is remembered of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.analysis.scores.fidelity import wanted_chunks
from quantailor.costs.model_size import ModelSize
from quantailor.evidence.written import known_reference, let_go, reference
from quantailor.ggml import library
from quantailor.session import OpenedModel, Workspace
from quantailor.steps.stages import Stages
from quantailor.store import ReferenceFile, ScoreKey

PRESET_SHARE = 0.8
"""A preset's file is hardly smaller than this share of all weights at its main type."""


@dataclass(frozen=True, slots=True)
class References:
    """The presets of a verdict."""

    files: dict[str, Path]
    """Preset -> its file."""
    remembered: dict[str, ReferenceFile]
    """Preset -> what its file was, where all that is asked is known of it."""

    def let_go(self, workspace: Workspace, model: OpenedModel, job_id: int) -> None:
        """Remove the files, unless another job than that one is running, which may read them: what they are stays known."""
        if not any(job.id != job_id for job in workspace.store.jobs.all(states=("running",))):
            for path in self.files.values():
                let_go(workspace, model, path)


def references(
    workspace: Workspace,
    model: OpenedModel,
    presets: Sequence[str],
    imatrix: Imatrix | None,
    *,
    key_of: Callable[[str], ScoreKey] | None,
    n_chunks: int,
    n_threads: int | None,
    stages: Stages,
) -> References:
    """The presets' files, made where one is missing of which not all is known.

    Args:
        workspace: whose home has the files, and whose store the scores.
        model: the base.
        presets: their names.
        imatrix: what they are made with.
        key_of: what scores of a content are filed under; None where files are asked for more than scores.
        n_chunks: of the text that they are scored on.
        n_threads: None takes all processors.
        stages: each file that is made is one.

    Raises as `evidence.written.reference` does.
    """
    found = References({}, {})
    for preset in presets:
        known = known_reference(workspace, model, preset, imatrix) if key_of is not None else None
        if (
            known is not None
            and key_of is not None
            and wanted_chunks(preset, n_chunks) <= workspace.store.scored_chunks(key_of(known.content))
        ):
            found.remembered[preset] = known
            continue
        control = stages.begin(f"reference {preset}")
        path = reference(workspace, model, preset, imatrix, n_threads=n_threads, control=control, executor=stages.executor)
        found.files[preset] = path
    return found


def is_scored(workspace: Workspace, key: ScoreKey, n_chunks: int) -> bool:
    """Whether a reference's scores on so many chunks are all stored."""
    return wanted_chunks(key.candidate, n_chunks) <= workspace.store.scored_chunks(key)


def missing_bytes(workspace: Workspace, model: OpenedModel, presets: Sequence[str], imatrix: Imatrix | None) -> int:
    """Bytes of files at the least of which nothing is known and that no earlier run left, whatever their importance matrix."""
    size, folder, n_bytes = ModelSize.of(model.source), workspace.home.references, 0
    for preset in presets:
        is_there = any(folder.glob(f"{model.description[:16]}-*-{preset}.gguf"))
        if not is_there and known_reference(workspace, model, preset, imatrix) is None:
            bits = [qtype.bits_per_weight for name, qtype in library.types().items() if name == _main_type(preset)]
            n_bytes += size.bytes_at(PRESET_SHARE * sum(bits))
    return n_bytes


def _main_type(preset: str) -> str:
    """The type that most weights of a preset have; "" where none is named like it."""
    return max((name for name in library.types() if preset.startswith(name)), key=len, default="")
