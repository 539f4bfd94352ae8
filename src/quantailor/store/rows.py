"""Records as rows of the database, and rows as records."""

from __future__ import annotations

import json
import sys
from dataclasses import fields

from quantailor.errors import StoreError
from quantailor.records import ChunkScore, WeightError
from quantailor.store import encoding
from quantailor.store.database import Row, Value
from quantailor.store.keys import CalibrationRecord, MeasurementKey, ReferenceFile, ScoreKey, VerdictRecord

_CELL_FIELDS = tuple(field.name for field in fields(WeightError))
_MIX_SCORE_FIELDS = tuple(field.name for field in fields(ChunkScore) if field.name != "klds")
_CELL_BLOBS = ("error_quantiles", "error_quantiles_se", "histogram")
_BLOB_PLACES, _NAME_PLACES = ([_CELL_FIELDS.index(name) for name in names] for names in (_CELL_BLOBS, ("tensor", "type_name")))


def cell_row(key: MeasurementKey, cell: WeightError) -> dict[str, Value]:
    """A cell as it is stored. Raises StoreError for one of another definition, or with NaN."""
    if cell.definition_version != key.definition_version:
        what = f"{cell.tensor} at {cell.type_name}"
        raise StoreError(f"{what} was measured by definition {cell.definition_version}, not {key.definition_version}")
    figures = {name: encoding.plain(getattr(cell, name)) for name in _CELL_FIELDS}
    encoding.refuse_nan(figures, f"{cell.tensor} at {cell.type_name}")
    figures.update({name: encoding.floats_to_blob(figures[name]) for name in _CELL_BLOBS})
    figures.update(key.row)
    return figures


def cell_of(row: Row) -> WeightError:
    """A cell from its row."""
    figures = list(row)  # by place: large models have hundreds of thousands of cells
    for place in _BLOB_PLACES:
        figures[place] = encoding.floats_from_blob(figures[place])
    for place in _NAME_PLACES:
        figures[place] = sys.intern(figures[place])
    return WeightError(*figures)


def score_row(key: ScoreKey, score: ChunkScore) -> dict[str, Value]:
    """A chunk's score as it is stored. Raises StoreError where it holds NaN."""
    figures = {field.name: encoding.plain(getattr(score, field.name)) for field in fields(ChunkScore)}
    encoding.refuse_nan(figures, f"chunk {score.index} of {key.candidate}")
    return {**figures, **key.row, "klds": encoding.floats_to_blob(score.klds)}


def score_of(row: Row) -> ChunkScore:
    """A chunk's score from its row."""
    index, n_tokens, nll_sum, kld_sum, top_agreement, dp_square_sum, klds = row
    return ChunkScore(index, n_tokens, nll_sum, kld_sum, top_agreement, dp_square_sum, encoding.floats_from_blob(klds))


def mix_score_row(run: str, mix: str, score: ChunkScore) -> dict[str, Value]:
    """The same of a mix, without the divergences of single tokens. Raises StoreError where it holds NaN."""
    figures = {name: encoding.plain(getattr(score, name)) for name in _MIX_SCORE_FIELDS}
    encoding.refuse_nan(figures, f"chunk {score.index} of {mix}")
    return {**figures, "run": run, "mix": mix}


def calibration_of(row: Row) -> CalibrationRecord:
    """An importance matrix' or covariances' record from its row."""
    model, fingerprint, datasets, chunk_count, chunk_size, origin = row
    return CalibrationRecord(model, fingerprint, tuple(json.loads(datasets)), chunk_count, chunk_size, origin)


def reference_file_of(row: Row) -> ReferenceFile:
    """What a reference is, from its row."""
    model, name, content, size_bytes, bits, types = row
    return ReferenceFile(str(model), str(name), str(content), int(str(size_bytes)), float(str(bits)), json.loads(str(types)))


def verdict_of(row: Row) -> VerdictRecord:
    """A verdict's record from its row."""
    fingerprint, strategy, document = row
    return VerdictRecord(fingerprint, encoding.verdict_from_json(document), strategy)
