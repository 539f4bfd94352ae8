"""A home's importance matrices: kept, found again, chosen."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from quantailor.analysis.importance.imatrix import BLOCK_PREFIX, TOKEN_EMBEDDINGS, Imatrix, fits, quantizer_importance
from quantailor.analysis.importance.imatrix_file import read_imatrix, write_imatrix
from quantailor.errors import ImatrixError
from quantailor.jobs import Home
from quantailor.models.source import ModelSource
from quantailor.present.words import plural
from quantailor.session.opened import OpenedModel, quantizable_tensors
from quantailor.store import CalibrationRecord, ImatrixKey, Store

_OUTPUT = "output.weight"
_LAYER = re.compile(rf"{re.escape(BLOCK_PREFIX)}(\d{{1,9}})\.")
AUTO, NONE = "auto", "none"
"""What an importance matrix may be instead of a file: the model's own (see `KeptImatrices.stored`), or none."""


class KeptImatrices:
    """The importance matrices of every model of a home."""

    def __init__(self, home: Home, store: Store) -> None:
        self._home = home
        self._store = store

    def path(self, model: str, imatrix: str) -> Path:
        """Where the store keeps that importance matrix."""
        return self._home.imatrices / f"{model[:16]}-{imatrix[:16]}.gguf"

    def keep(self, model: str, imatrix: Imatrix, *, imported: bool, computed: ImatrixKey | None = None) -> Path:
        """Write an importance matrix to its place and record it as the model's latest."""
        path = self.path(model, imatrix.fingerprint)
        if self.intact(model, imatrix.fingerprint) is None:
            write_imatrix(imatrix, path, overwrite=True)
        seen = imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size
        record = CalibrationRecord(model, imatrix.fingerprint, *seen, "imported" if imported else "computed")
        self._store.record_imatrix(record, computed=computed)
        return path

    def read(self, model: str, imatrix: str) -> Imatrix:
        """The importance matrix of that fingerprint. Raises ImatrixError where its file is gone."""
        path = self.path(model, imatrix)
        if not path.exists():
            raise ImatrixError(
                f"importance matrix {imatrix[:12]} is not at {path}",
                remedy="Put it back there, or compute one with `quantailor imatrix BASE`",
            )
        found = read_imatrix(path)
        if found.fingerprint != imatrix:
            raise ImatrixError(
                f"{path} is no longer importance matrix {imatrix[:12]}",
                remedy="Delete it and compute it again",
            )
        return found

    def intact(self, model: str, imatrix: str) -> Imatrix | None:
        """The same; None where its file is gone or is not what was written."""
        try:
            return self.read(model, imatrix)
        except ImatrixError:
            return None

    def stored(self, model: str) -> list[CalibrationRecord]:
        """A model's importance matrices whose files are there: the one that "auto" takes, then the others, the latest first.

        A later one takes an earlier one's place where it saw as many tokens, or where it alone was measured with.
        """
        records = [record for record in self._store.imatrices(model) if self.path(model, record.fingerprint).exists()]
        measured = {key.imatrix for key in self._store.measurements(model)} if len(records) > 1 else ()
        default: CalibrationRecord | None = None
        for record in reversed(records):
            saw_less = default is not None and 0 < n_tokens(record) < n_tokens(default)
            if default is None or not saw_less or (record.fingerprint in measured and default.fingerprint not in measured):
                default = record
        return sorted(records, key=lambda record: record != default)

    def passed_over(self, model: str) -> str | None:
        """A sentence about the latest importance matrix of a model where "auto" takes another one."""
        stored = self.stored(model)
        latest = next((record for record in self._store.imatrices(model) if record in stored), None)
        if latest is None or latest == stored[0]:
            return None
        seen = [
            f"{plural(record.chunk_count, 'chunk') if record.chunk_count else 'chunks'} of {', '.join(record.datasets) or 'a text'}"
            for record in (stored[0], latest)
        ]
        place = self.path(model, latest.fingerprint)
        return f"Importance matrix {stored[0].fingerprint[:12]} is used ({seen[0]}); --imatrix {place} takes the later one ({seen[1]})."

    def default(self, model: str) -> Imatrix | None:
        """The importance matrix that "auto" takes; None where a model has none."""
        return next((self.read(model, record.fingerprint) for record in self.stored(model)), None)

    def choose(self, model: OpenedModel, wanted: str, tell: Callable[[str], None] | None = None) -> Imatrix | None:
        """What `--imatrix` means: "auto" the model's own, "none" nothing, else a file (which is then kept).

        Where "auto" passes over the latest one, or one holds tensors that the model lacks, that is told to `tell`.

        Raises ImatrixError where the file cannot be read or belongs to another model.
        """
        if wanted == NONE:
            return None
        found = self.default(model.fingerprint) if wanted == AUTO else self._of_file(model, Path(wanted))
        if tell is not None:
            for words in self._remarks(model, wanted, found):
                tell(words)
        return found

    def remarks(self, model: OpenedModel, wanted: str) -> list[str]:
        """What a user should know of the importance matrix that `choose` takes, one sentence each. Raises as `choose` does."""
        return self._remarks(model, wanted, self.choose(model, wanted))

    def _remarks(self, model: OpenedModel, wanted: str, found: Imatrix | None) -> list[str]:
        passed_over = self.passed_over(model.fingerprint) if wanted == AUTO else None
        foreign = None if found is None else other_words(found, model.source)
        return [words for words in (passed_over, foreign) if words is not None]

    def _of_file(self, model: OpenedModel, file: Path) -> Imatrix:
        """What of a file fits the model, kept. Raises ImatrixError."""
        imatrix, _ = fitted(read_imatrix(file), model.source)
        is_known = self._store.imatrix(model.fingerprint, imatrix.fingerprint) is not None
        if not is_known or not self.path(model.fingerprint, imatrix.fingerprint).exists():
            self.keep(model.fingerprint, imatrix, imported=True)
        return imatrix


def n_tokens(record: CalibrationRecord) -> int:
    """Tokens that an importance matrix or covariances saw; 0 where its file does not tell."""
    return record.chunk_count * record.chunk_size


def require_fit(file: Path, source: ModelSource) -> None:
    """Raise ImatrixError where a file is no importance matrix, or is another model's."""
    fitted(read_imatrix(file), source)


def others(imatrix: Imatrix, source: ModelSource) -> tuple[str, ...]:
    """The names of entries whose tensors a model lacks: llama-quantize looks at none of them.

    The output matrix does not count, which a conversion may store or leave out of one and the same model.
    """
    names = {tensor.name for tensor in source.tensors} | {_OUTPUT}
    return tuple(name for name in imatrix.entries if name not in names)


def other_words(imatrix: Imatrix, source: ModelSource) -> str | None:
    """What is to be said of an importance matrix that holds tensors which a model lacks; None where it holds none."""
    found = others(imatrix, source)
    if not found:
        return None
    matrix, lacking = f"The importance matrix {imatrix.fingerprint[:12]}", plural(len(found), "tensor")
    lacking += f" that {source.name} lacks ({found[0]}{f' and {len(found) - 1:,} more' if len(found) > 1 else ''})"
    there, here = (1 + max(map(_layer, names), default=-1) for names in (imatrix.entries, [tensor.name for tensor in source.tensors]))
    if there > here:
        return (
            f"{matrix} is probably another model's: it has {there:,} layers in place of {here:,}, with {lacking}. The rest of it is used."
        )
    return f"{matrix} may be of another model, or of another conversion of it: it holds {lacking}. The rest of it is used."


def _layer(name: str) -> int:
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def fitted(imatrix: Imatrix, source: ModelSource) -> tuple[Imatrix, tuple[str, ...]]:
    """An importance matrix without the entries whose lengths are not the tensors', and the names of these.

    Entries whose tensors the model lacks stay (`others`).

    Raises ImatrixError when it is another model's: most of its names, of its lengths, or of both are not this model's.
    """
    tensors = {tensor.name: tensor for tensor in source.tensors}
    known = [name for name in imatrix.entries if name in tensors]
    if 2 * len(known) < len(imatrix.entries) or not known:
        raise ImatrixError(
            f"the importance matrix is of another model: {source.name} has {len(known)} of its {plural(len(imatrix.entries), 'tensor')}",
            remedy="Use one of this model",
        )
    if not any(imatrix.entries[name].sum2.any() for name in known):
        raise ImatrixError(
            f"the importance matrix says nothing: all values of its {plural(len(known), 'tensor')} are zero",
            remedy="Compute it again, or do without one (--imatrix none)",
        )
    odd = tuple(name for name in known if name not in TOKEN_EMBEDDINGS and not fits(imatrix.entries[name], tensors[name]))
    if 2 * len(odd) > len(known):
        entry, tensor = imatrix.entries[odd[0]], tensors[odd[0]]
        raise ImatrixError(
            f"the importance matrix is of another model: {len(odd)} of {len(known)} tensors have other lengths, "
            f"{odd[0]} {entry.sum2.size} values instead of {tensor.n_slices * tensor.n_cols}",
            remedy="Use one of this model",
        )
    n_fitting, n_entries = len(known) - len(odd), len(imatrix.entries)
    if 2 * n_fitting < n_entries:
        raise ImatrixError(
            f"the importance matrix is of another model: of its {plural(n_entries, 'tensor')} {source.name} lacks "
            f"{n_entries - len(known)}, and {len(odd)} have other lengths",
            remedy="Use one of this model",
        )
    if odd:
        imatrix = replace(imatrix, entries={name: entry for name, entry in imatrix.entries.items() if name not in odd})
    for tensor in quantizable_tensors(source):
        quantizer_importance(imatrix, tensor)
    return imatrix, odd
