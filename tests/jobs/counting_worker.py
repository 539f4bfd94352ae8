"""A job in small: cells, an importance matrix and chunk scores of a made-up model, each with figures that are
worth comparing bit for bit. `count([DATABASE, JOURNAL])` runs it, or goes on where it stopped.

Every unit adds a line to JOURNAL before it is measured, so that a test sees what was measured twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from quantailor.jobs import JobControl, reconcile, resume, run
from quantailor.records import ChunkScore, TensorInfo, WeightError
from quantailor.store import CalibrationRecord, ImatrixKey, MeasurementKey, ModelRecord, ScoreKey, Store

TENSORS = [TensorInfo(f"blk.{layer}.attn_q.weight", (64, 256), "F16", 32768) for layer in range(10)]
TYPES = ("Q2_K", "Q4_K", "Q8_0")
MODEL = ModelRecord.of("f" * 64, "counting", "llama", TENSORS)
CELLS = MeasurementKey(MODEL.fingerprint)
IMATRIX = ImatrixKey(MODEL.fingerprint, "c" * 64, 512)
SCORES = ScoreKey(MODEL.fingerprint, "c" * 64, 512, "base")
N_CHUNKS = 30

Note = Callable[[str], None]


def figures_of(name: str, n: int = 2000) -> list[float]:
    """Numbers that depend on nothing but the name, and a little work."""
    numbers = random.Random(name)
    return [numbers.gauss(0, 1) for _ in range(n)]


def measure(store: Store, control: JobControl, note: Note) -> None:
    control.stage("measure")
    store.record_model(MODEL, TENSORS)
    for at, tensor in enumerate(TENSORS):
        for type_name in TYPES:
            control.check()
            if (tensor.name, type_name) in store.recorded_cells(CELLS):
                continue
            note(f"cell {tensor.name} {type_name}")
            figures = figures_of(f"{tensor.name} {type_name}")
            store.record_cells(CELLS, [WeightError(tensor.name, type_name, 1, 4.5, rmse=figures[0], histogram=tuple(figures[:64]))])
        control.advance(at + 1, len(TENSORS), tensor.name)


def compute_imatrix(store: Store, control: JobControl, note: Note) -> None:
    control.stage("imatrix")
    if store.computed_imatrix(IMATRIX) is not None:
        return
    begun = store.imatrix_progress(IMATRIX)
    done, total = (begun.n_chunks_done, float.fromhex(begun.state.decode())) if begun else (0, 0.0)
    for chunk in range(done, N_CHUNKS):
        control.check()
        note(f"imatrix {chunk}")
        total += sum(figures_of(f"chunk {chunk}"))
        store.record_imatrix_progress(IMATRIX, chunk + 1, total.hex().encode())
        control.advance(chunk + 1, N_CHUNKS)
    store.record_imatrix(CalibrationRecord(MODEL.fingerprint, total.hex(), ("text",), N_CHUNKS, 512, "computed"), computed=IMATRIX)


def score(store: Store, control: JobControl, note: Note) -> None:
    control.stage("verify")
    for chunk in sorted(set(range(N_CHUNKS)) - store.scored_chunks(SCORES)):
        control.check()
        note(f"score {chunk}")
        figures = figures_of(f"score {chunk}")
        store.record_chunk_scores(SCORES, [ChunkScore(chunk, 256, figures[0], figures[1], 200, figures[2], tuple(figures[:256]))])
        control.advance(chunk + 1, N_CHUNKS)


def count(paths: Sequence[str]) -> None:
    database, journal = map(Path, paths)
    with Store(database) as store, journal.open("a", buffering=1) as lines:
        reconcile(store)
        job = store.jobs.all()[0] if store.jobs.all() else store.jobs.create("count", {})
        if job.state == "done":
            return
        resume(store, job.id)

        def work(control: JobControl) -> None:
            for part in (measure, compute_imatrix, score):
                part(store, control, lambda unit: print(unit, file=lines))

        run(store, job.id, work)
