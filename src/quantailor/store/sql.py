"""The store's statements, written out; columns come in the order of the records they fill."""

from __future__ import annotations

RESULT_TABLES = {
    "models": "SELECT * FROM models ORDER BY fingerprint",
    "tensors": "SELECT * FROM tensors ORDER BY model, name",
    "cells": "SELECT * FROM cells ORDER BY model, imatrix, settings, definition_version, tensor, type_name",
    "imatrices": "SELECT * FROM imatrices ORDER BY model, fingerprint",
    "imatrix_computations": "SELECT * FROM imatrix_computations ORDER BY model, corpus, n_ctx, options",
    "imatrix_progress": "SELECT * FROM imatrix_progress ORDER BY model, corpus, n_ctx, options",
    "covariances": "SELECT * FROM covariances ORDER BY model, fingerprint",
    "covariance_computations": "SELECT * FROM covariance_computations ORDER BY model, corpus, n_ctx, options",
    "chunk_scores": "SELECT * FROM chunk_scores ORDER BY model, corpus, n_ctx, candidate, chunk",
    "answers": "SELECT * FROM answers ORDER BY model, evaluation, candidate, item",
    "strategies": "SELECT * FROM strategies ORDER BY fingerprint",
    "verdicts": "SELECT * FROM verdicts ORDER BY fingerprint",
    "swap_runs": "SELECT * FROM swap_runs ORDER BY run",
    "mixes": "SELECT * FROM mixes ORDER BY model, mix, purpose",
    "mix_scores": "SELECT * FROM mix_scores ORDER BY run, mix, chunk",
    "reference_files": "SELECT * FROM reference_files ORDER BY name",
    "timings": "SELECT * FROM timings ORDER BY structure, kernels, n_threads, n_gpu_layers, definition_version, timed",
}
"""Every row of every result table, by key."""
MEASUREMENT_TABLES = ("models", "tensors", "cells", "imatrices", "imatrix_computations", "swap_runs", "mixes", "mix_scores")
"""What stands for itself, without files of its own; each after those that it refers to."""


def _upsert(table: str, key: str, columns: str, *, named: bool = False, **parameters: str) -> str:
    """Insert a row, or replace the one of that key; parameters are by position, or named like their columns but for `parameters`."""
    names = columns.split(", ")
    values = ", ".join(f":{parameters.get(name, name)}" for name in names) if named else ", ".join("?" * len(names))
    changes = ", ".join(f"{name} = excluded.{name}" for name in names if name not in key.split(", "))
    return " ".join(("INSERT INTO", table, f"({columns}) VALUES ({values}) ON CONFLICT ({key}) DO UPDATE SET", changes))


class SQL:
    """One statement per method of the store."""

    record_model = _upsert("models", "fingerprint", "fingerprint, name, architecture, n_tensors, n_elements, size_bytes", named=True)
    record_tensor = _upsert("tensors", "model, name", "model, name, position, shape, type_name, size_bytes")
    model = "SELECT fingerprint, name, architecture, n_tensors, n_elements, size_bytes FROM models WHERE fingerprint = ?"
    models = """
        SELECT fingerprint, name, architecture, n_tensors, n_elements, size_bytes FROM models
        LEFT JOIN history ON kind = 'model' AND key = fingerprint ORDER BY recorded DESC, fingerprint"""
    tensors = "SELECT name, shape, type_name, size_bytes FROM tensors WHERE model = ? ORDER BY position"
    forget_model = "DELETE FROM models WHERE fingerprint = ?"

    record_cell = _upsert(
        "cells",
        "model, imatrix, settings, definition_version, tensor, type_name",
        "model, imatrix, settings, definition_version, tensor, type_name, size_bytes, bits_per_weight, "
        "n_rows_measured, n_rows_total, rmse, max_abs_error, relative_mse, sqnr_db, weighted_mse, output_error, output_mse, "
        "rmse_se, relative_mse_se, weighted_mse_se, output_error_se, output_mse_se, error_quantiles, error_quantiles_se, "
        "histogram, n_unseen_experts, unavailable",
        named=True,
    )
    cells = """
        SELECT tensor, cells.type_name, cells.size_bytes, bits_per_weight, n_rows_measured, n_rows_total, rmse,
            max_abs_error, relative_mse, sqnr_db, weighted_mse, output_error, output_mse, rmse_se, relative_mse_se, weighted_mse_se,
            output_error_se, output_mse_se, IIF(:distributions, error_quantiles, X''), IIF(:distributions, error_quantiles_se, X''),
            IIF(:distributions, histogram, X''), n_unseen_experts, unavailable, definition_version
        FROM cells JOIN tensors ON tensors.model = cells.model AND tensors.name = cells.tensor
        WHERE cells.model = :model AND imatrix = :imatrix AND settings = :settings AND definition_version = :definition_version
            AND (:tensor IS NULL OR tensor = :tensor)
        ORDER BY position, cells.type_name"""
    recorded_cells = """
        SELECT tensor, type_name FROM cells WHERE model = :model AND imatrix = :imatrix AND settings = :settings
            AND definition_version = :definition_version"""
    cell_counts = """
        SELECT tensor, COUNT(*) FROM cells INDEXED BY cells_by_tensor WHERE model = :model AND +imatrix = :imatrix
            AND +settings = :settings AND +definition_version = :definition_version GROUP BY tensor"""
    cell_errors = """
        SELECT tensor, type_name, bits_per_weight, COALESCE(output_mse, weighted_mse, relative_mse), unavailable IS NOT NULL FROM cells
        WHERE model = :model AND imatrix = :imatrix AND settings = :settings AND definition_version = :definition_version
            AND tensor IN (SELECT value FROM json_each(:tensors))"""
    measurements = """
        SELECT model, imatrix, settings, definition_version, COUNT(*) FROM cells WHERE model = ?
        GROUP BY model, imatrix, settings, definition_version ORDER BY imatrix, settings, definition_version"""
    measured_tensors = """
        SELECT model, imatrix, settings, definition_version, COUNT(DISTINCT tensor) FROM cells WHERE model = ?
        GROUP BY model, imatrix, settings, definition_version"""
    forget_cells = """
        DELETE FROM cells WHERE model = :model AND imatrix = :imatrix AND settings = :settings
            AND definition_version = :definition_version"""

    record_imatrix_progress = _upsert(
        "imatrix_progress", "model, corpus, n_ctx, options", "model, corpus, n_ctx, options, n_chunks_done, state", named=True
    )
    imatrix_progress = """
        SELECT n_chunks_done, state FROM imatrix_progress
        WHERE model = :model AND corpus = :corpus AND n_ctx = :n_ctx AND options = :options"""
    forget_imatrix_progress = """
        DELETE FROM imatrix_progress WHERE model = :model AND corpus = :corpus AND n_ctx = :n_ctx AND options = :options"""
    record_imatrix = _upsert("imatrices", "model, fingerprint", "model, fingerprint, datasets, chunk_count, chunk_size, origin", named=True)
    record_computation = _upsert(
        "imatrix_computations", "model, corpus, n_ctx, options", "model, corpus, n_ctx, options, fingerprint", named=True
    )
    imatrix = """
        SELECT model, fingerprint, datasets, chunk_count, chunk_size, origin FROM imatrices WHERE model = ? AND fingerprint = ?"""
    imatrices = """
        SELECT model, fingerprint, datasets, chunk_count, chunk_size, origin FROM imatrices
        LEFT JOIN history ON kind = 'imatrix' AND key = model || ' ' || fingerprint
        WHERE model = ? ORDER BY recorded DESC, fingerprint"""
    imatrix_texts = """
        SELECT DISTINCT corpus FROM imatrix_computations WHERE model = :model AND :fingerprint IN ('', fingerprint)"""
    computed_imatrix = """
        SELECT model, fingerprint, datasets, chunk_count, chunk_size, origin
        FROM imatrix_computations JOIN imatrices USING (model, fingerprint)
        WHERE model = :model AND corpus = :corpus AND n_ctx = :n_ctx AND options = :options"""

    record_covariances = _upsert(
        "covariances", "model, fingerprint", "model, fingerprint, datasets, chunk_count, chunk_size, origin", named=True
    )
    record_covariance_computation = _upsert(
        "covariance_computations", "model, corpus, n_ctx, options", "model, corpus, n_ctx, options, fingerprint", named=True
    )
    covariance_texts = """
        SELECT DISTINCT corpus FROM covariance_computations WHERE model = :model AND substr(fingerprint, 1, length(:start)) = :start"""
    covariances = """
        SELECT model, fingerprint, datasets, chunk_count, chunk_size, origin FROM covariances
        LEFT JOIN history ON kind = 'covariances' AND key = model || ' ' || fingerprint
        WHERE model = ? ORDER BY recorded DESC, fingerprint"""
    computed_covariances = """
        SELECT model, fingerprint, datasets, chunk_count, chunk_size, origin
        FROM covariance_computations JOIN covariances USING (model, fingerprint)
        WHERE model = :model AND corpus = :corpus AND n_ctx = :n_ctx AND options = :options"""

    record_chunk_score = _upsert(
        "chunk_scores",
        "model, corpus, n_ctx, candidate, chunk",
        "model, corpus, n_ctx, candidate, chunk, n_tokens, nll_sum, kld_sum, top_agreement, dp_square_sum, klds",
        named=True,
        chunk="index",
    )
    chunk_scores = """
        SELECT chunk, n_tokens, nll_sum, kld_sum, top_agreement, dp_square_sum, klds FROM chunk_scores
        WHERE model = :model AND corpus = :corpus AND n_ctx = :n_ctx AND candidate = :candidate ORDER BY chunk"""
    scored_chunks = """
        SELECT chunk FROM chunk_scores
        WHERE model = :model AND corpus = :corpus AND n_ctx = :n_ctx AND candidate = :candidate"""

    record_answer = _upsert("answers", "model, evaluation, candidate, item", "model, evaluation, candidate, item, figures", named=True)
    answers = """
        SELECT item, figures FROM answers
        WHERE model = :model AND evaluation = :evaluation AND candidate = :candidate ORDER BY item"""

    record_reference_file = _upsert("reference_files", "name", "model, name, content, size_bytes, bits_per_weight, types", named=True)
    reference_file = "SELECT model, name, content, size_bytes, bits_per_weight, types FROM reference_files WHERE name = ?"
    reference_files_of = """
        SELECT model, name, content, size_bytes, bits_per_weight, types FROM reference_files
        WHERE content IN (SELECT value FROM json_each(?)) ORDER BY name"""

    record_timing = _upsert(
        "timings",
        "structure, kernels, n_threads, n_gpu_layers, definition_version, timed",
        "structure, kernels, n_threads, n_gpu_layers, definition_version, timed, prompt, prompt_se, generation, generation_se, "
        "reference_prompt_s, reference_generation_s",
        named=True,
    )
    timings = """
        SELECT timed, prompt, prompt_se, generation, generation_se, reference_prompt_s, reference_generation_s FROM timings
        WHERE structure = :structure AND kernels = :kernels AND n_threads = :n_threads AND n_gpu_layers = :n_gpu_layers
            AND definition_version = :definition_version ORDER BY timed"""
    n_timings = "SELECT COUNT(*) FROM timings"
    timed_with = """
        SELECT n_threads, n_gpu_layers FROM timings
        WHERE structure = :structure AND kernels = :kernels AND definition_version = :definition_version
        GROUP BY n_threads, n_gpu_layers ORDER BY COUNT(*) DESC, n_threads DESC, n_gpu_layers"""

    record_swap_run = """
        INSERT INTO swap_runs (run, model, imatrix, corpus, n_ctx, kernels, base_kernels, engine, rounding, rest)
        VALUES (:run, :model, :imatrix, :corpus, :n_ctx, :kernels, :base_kernels, :engine, :rounding, :rest) ON CONFLICT (run) DO NOTHING"""
    scored_mixes = "SELECT mix, COUNT(*) FROM mix_scores WHERE run = ? GROUP BY mix"
    swap_runs = """
        SELECT model, imatrix, corpus, n_ctx, kernels, base_kernels, engine, rounding, rest
        FROM swap_runs LEFT JOIN history ON kind = 'swap run' AND key = run
        WHERE model = ? ORDER BY recorded DESC, run"""
    record_mix = _upsert("mixes", "model, mix, purpose", "model, mix, purpose, document", named=True)
    mixes = "SELECT mix, document FROM mixes WHERE model = ? AND purpose = ? ORDER BY mix"
    record_mix_score = _upsert(
        "mix_scores",
        "run, mix, chunk",
        "run, mix, chunk, n_tokens, nll_sum, kld_sum, top_agreement, dp_square_sum",
        named=True,
        chunk="index",
    )
    mix_scores = """
        SELECT mix, chunk, n_tokens, nll_sum, kld_sum, top_agreement, dp_square_sum FROM mix_scores
        WHERE run = ? ORDER BY mix, chunk"""

    record_strategy = _upsert("strategies", "fingerprint", "fingerprint, model, method, document", named=True)
    strategy = "SELECT fingerprint, model, method, document FROM strategies WHERE fingerprint = ?"
    strategies = """
        SELECT fingerprint, model, method, document FROM strategies LEFT JOIN history ON kind = 'strategy' AND key = fingerprint
        WHERE model = ? ORDER BY recorded DESC, fingerprint"""
    record_verdict = """
        INSERT INTO verdicts (fingerprint, model, strategy, document) VALUES (?, ?, ?, ?)
        ON CONFLICT (fingerprint) DO UPDATE SET strategy = COALESCE(excluded.strategy, strategy)"""
    verdict = "SELECT fingerprint, strategy, document FROM verdicts WHERE fingerprint = ?"
    verdicts = """
        SELECT fingerprint, strategy, document FROM verdicts LEFT JOIN history ON kind = 'verdict' AND key = fingerprint
        WHERE model = ? ORDER BY recorded DESC, fingerprint"""

    record_draft = """
        INSERT INTO drafts (model, name, document, changed, revision) VALUES (?, ?, ?, ?, ?)
        ON CONFLICT (model, name) DO UPDATE SET
            document = excluded.document, changed = excluded.changed, revision = max(drafts.revision + 1, excluded.revision)"""
    begin_draft = """
        INSERT INTO drafts (model, name, document, changed, revision) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"""
    change_draft = """
        UPDATE drafts SET document = ?, changed = ?, revision = max(revision + 1, ?) WHERE model = ? AND name = ? AND revision = ?"""
    draft = "SELECT document, revision FROM drafts WHERE model = ? AND name = ?"
    draft_revision = "SELECT revision FROM drafts WHERE model = ? AND name = ?"
    drafts = "SELECT name, changed FROM drafts WHERE model = ? ORDER BY changed DESC, name"
    forget_draft = "DELETE FROM drafts WHERE model = ? AND name = ?"

    record_identity = _upsert("identities", "path", "path, files, fingerprint, not_finite, lost, lost_whole, zeros")
    identity = "SELECT fingerprint, not_finite, lost, lost_whole, zeros FROM identities WHERE path = ? AND files = ?"
    forget_other_locations = "DELETE FROM locations WHERE kind = ? AND key <> ? AND path = ?"
    record_location = _upsert("locations", "kind, key, path", "kind, key, path, seen")
    locations = "SELECT path FROM locations WHERE kind = ? AND key = ? ORDER BY seen DESC, path"
    n_available_cells = """
        SELECT COALESCE(MAX(n), 0) FROM (
            SELECT COUNT(*) AS n FROM cells
            WHERE model = :model AND unavailable IS NULL AND type_name IN (SELECT value FROM json_each(:types))
            GROUP BY imatrix, settings, definition_version)"""
    every_location = "SELECT key, path, seen FROM locations WHERE kind = ? ORDER BY seen DESC, path"
    counts = """
        WITH scored AS (
            SELECT DISTINCT run, mix FROM mix_scores JOIN swap_runs USING (run)
            WHERE model = :model AND kernels = 'as built' AND mix <> '' AND engine IN (SELECT value FROM json_each(:engines))
                AND mix NOT IN (SELECT mix FROM mixes WHERE model = :model AND purpose = 'stored')),
        runs AS (SELECT SUM(mix LIKE '%=%') AS n_cells, SUM(mix NOT LIKE '%=%') AS n_mixes FROM scored GROUP BY run)
        SELECT (SELECT COUNT(*) FROM strategies WHERE model = :model), (SELECT COUNT(*) FROM verdicts WHERE model = :model),
            COALESCE(MAX(n_cells), 0), COALESCE(MAX(n_mixes), 0) FROM runs"""
    builds = """
        SELECT path FROM locations JOIN strategies ON kind = 'build' AND key = fingerprint WHERE model = ? ORDER BY seen DESC, path"""
    note = _upsert("history", "kind, key", "kind, key, recorded")
