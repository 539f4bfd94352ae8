"""The store's statements, written out; columns come in the order of the records they fill."""

from __future__ import annotations

RESULT_TABLES = {
    "models": "SELECT * FROM models ORDER BY fingerprint",
    "tensors": "SELECT * FROM tensors ORDER BY model, name",
    "cells": "SELECT * FROM cells ORDER BY model, imatrix, settings, definition_version, tensor, type_name",
    "imatrices": "SELECT * FROM imatrices ORDER BY model, fingerprint",
    "imatrix_computations": "SELECT * FROM imatrix_computations ORDER BY model, corpus, n_ctx, options",
    "imatrix_progress": "SELECT * FROM imatrix_progress ORDER BY model, corpus, n_ctx, options",
    "chunk_scores": "SELECT * FROM chunk_scores ORDER BY model, corpus, n_ctx, candidate, chunk",
    "strategies": "SELECT * FROM strategies ORDER BY fingerprint",
    "verdicts": "SELECT * FROM verdicts ORDER BY fingerprint",
    "swap_runs": "SELECT * FROM swap_runs ORDER BY run",
    "mixes": "SELECT * FROM mixes ORDER BY model, mix, purpose",
    "mix_scores": "SELECT * FROM mix_scores ORDER BY run, mix, chunk",
}
"""Every row of every result table, by key."""


class SQL:
    """One statement per method of the store."""

    record_model = """
        INSERT INTO models (fingerprint, name, architecture, n_tensors, n_elements, size_bytes)
        VALUES (:fingerprint, :name, :architecture, :n_tensors, :n_elements, :size_bytes)
        ON CONFLICT (fingerprint) DO UPDATE SET name = excluded.name, architecture = excluded.architecture,
            n_tensors = excluded.n_tensors, n_elements = excluded.n_elements, size_bytes = excluded.size_bytes"""
    record_tensor = """
        INSERT INTO tensors (model, name, position, shape, type_name, size_bytes) VALUES (?, ?, ?, ?, ?, ?)
        ON CONFLICT (model, name) DO UPDATE SET position = excluded.position, shape = excluded.shape,
            type_name = excluded.type_name, size_bytes = excluded.size_bytes"""
    model = "SELECT fingerprint, name, architecture, n_tensors, n_elements, size_bytes FROM models WHERE fingerprint = ?"
    models = """
        SELECT fingerprint, name, architecture, n_tensors, n_elements, size_bytes FROM models
        LEFT JOIN history ON kind = 'model' AND key = fingerprint ORDER BY recorded DESC, fingerprint"""
    tensors = "SELECT name, shape, type_name, size_bytes FROM tensors WHERE model = ? ORDER BY position"
    forget_model = "DELETE FROM models WHERE fingerprint = ?"

    record_cell = """
        INSERT INTO cells (model, imatrix, settings, definition_version, tensor, type_name, size_bytes, bits_per_weight,
            n_rows_measured, n_rows_total, rmse, max_abs_error, relative_mse, sqnr_db, weighted_mse, output_error,
            rmse_se, relative_mse_se, weighted_mse_se, output_error_se, error_quantiles, error_quantiles_se, histogram,
            n_unseen_experts, unavailable)
        VALUES (:model, :imatrix, :settings, :definition_version, :tensor, :type_name, :size_bytes, :bits_per_weight,
            :n_rows_measured, :n_rows_total, :rmse, :max_abs_error, :relative_mse, :sqnr_db, :weighted_mse, :output_error,
            :rmse_se, :relative_mse_se, :weighted_mse_se, :output_error_se, :error_quantiles, :error_quantiles_se, :histogram,
            :n_unseen_experts, :unavailable)
        ON CONFLICT (model, imatrix, settings, definition_version, tensor, type_name) DO UPDATE SET
            size_bytes = excluded.size_bytes, bits_per_weight = excluded.bits_per_weight,
            n_rows_measured = excluded.n_rows_measured, n_rows_total = excluded.n_rows_total, rmse = excluded.rmse,
            max_abs_error = excluded.max_abs_error, relative_mse = excluded.relative_mse, sqnr_db = excluded.sqnr_db,
            weighted_mse = excluded.weighted_mse, output_error = excluded.output_error, rmse_se = excluded.rmse_se,
            relative_mse_se = excluded.relative_mse_se, weighted_mse_se = excluded.weighted_mse_se,
            output_error_se = excluded.output_error_se, error_quantiles = excluded.error_quantiles,
            error_quantiles_se = excluded.error_quantiles_se, histogram = excluded.histogram,
            n_unseen_experts = excluded.n_unseen_experts, unavailable = excluded.unavailable"""
    cells = """
        SELECT tensor, cells.type_name, cells.size_bytes, bits_per_weight, n_rows_measured, n_rows_total, rmse,
            max_abs_error, relative_mse, sqnr_db, weighted_mse, output_error, rmse_se, relative_mse_se, weighted_mse_se,
            output_error_se, IIF(:distributions, error_quantiles, X''), IIF(:distributions, error_quantiles_se, X''),
            IIF(:distributions, histogram, X''), n_unseen_experts, unavailable, definition_version
        FROM cells JOIN tensors ON tensors.model = cells.model AND tensors.name = cells.tensor
        WHERE cells.model = :model AND imatrix = :imatrix AND settings = :settings AND definition_version = :definition_version
            AND (:tensor IS NULL OR tensor = :tensor)
        ORDER BY position, cells.type_name"""
    has_cell = """
        SELECT 1 FROM cells WHERE model = :model AND imatrix = :imatrix AND settings = :settings
            AND definition_version = :definition_version AND tensor = :tensor AND type_name = :type_name"""
    recorded_cells = """
        SELECT tensor, type_name FROM cells WHERE model = :model AND imatrix = :imatrix AND settings = :settings
            AND definition_version = :definition_version"""
    cell_counts = """
        SELECT tensor, COUNT(*) FROM cells INDEXED BY cells_by_tensor WHERE model = :model AND +imatrix = :imatrix
            AND +settings = :settings AND +definition_version = :definition_version GROUP BY tensor"""
    cell_errors = """
        SELECT tensor, type_name, bits_per_weight, COALESCE(weighted_mse, relative_mse), unavailable IS NOT NULL FROM cells
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

    record_imatrix_progress = """
        INSERT INTO imatrix_progress (model, corpus, n_ctx, options, n_chunks_done, state)
        VALUES (:model, :corpus, :n_ctx, :options, :n_chunks_done, :state)
        ON CONFLICT (model, corpus, n_ctx, options) DO UPDATE SET
            n_chunks_done = excluded.n_chunks_done, state = excluded.state"""
    imatrix_progress = """
        SELECT n_chunks_done, state FROM imatrix_progress
        WHERE model = :model AND corpus = :corpus AND n_ctx = :n_ctx AND options = :options"""
    forget_imatrix_progress = """
        DELETE FROM imatrix_progress WHERE model = :model AND corpus = :corpus AND n_ctx = :n_ctx AND options = :options"""
    record_imatrix = """
        INSERT INTO imatrices (model, fingerprint, datasets, chunk_count, chunk_size, origin)
        VALUES (:model, :fingerprint, :datasets, :chunk_count, :chunk_size, :origin)
        ON CONFLICT (model, fingerprint) DO UPDATE SET datasets = excluded.datasets, chunk_count = excluded.chunk_count,
            chunk_size = excluded.chunk_size, origin = excluded.origin"""
    record_computation = """
        INSERT INTO imatrix_computations (model, corpus, n_ctx, options, fingerprint)
        VALUES (:model, :corpus, :n_ctx, :options, :fingerprint)
        ON CONFLICT (model, corpus, n_ctx, options) DO UPDATE SET fingerprint = excluded.fingerprint"""
    imatrix = """
        SELECT model, fingerprint, datasets, chunk_count, chunk_size, origin FROM imatrices WHERE model = ? AND fingerprint = ?"""
    imatrices = """
        SELECT model, fingerprint, datasets, chunk_count, chunk_size, origin FROM imatrices
        LEFT JOIN history ON kind = 'imatrix' AND key = model || ' ' || fingerprint
        WHERE model = ? ORDER BY recorded DESC, fingerprint"""
    computed_imatrix = """
        SELECT model, fingerprint, datasets, chunk_count, chunk_size, origin
        FROM imatrix_computations JOIN imatrices USING (model, fingerprint)
        WHERE model = :model AND corpus = :corpus AND n_ctx = :n_ctx AND options = :options"""

    record_chunk_score = """
        INSERT INTO chunk_scores (model, corpus, n_ctx, candidate, chunk, n_tokens, nll_sum, kld_sum, top_agreement,
            dp_square_sum, klds)
        VALUES (:model, :corpus, :n_ctx, :candidate, :index, :n_tokens, :nll_sum, :kld_sum, :top_agreement,
            :dp_square_sum, :klds)
        ON CONFLICT (model, corpus, n_ctx, candidate, chunk) DO UPDATE SET n_tokens = excluded.n_tokens,
            nll_sum = excluded.nll_sum, kld_sum = excluded.kld_sum, top_agreement = excluded.top_agreement,
            dp_square_sum = excluded.dp_square_sum, klds = excluded.klds"""
    chunk_scores = """
        SELECT chunk, n_tokens, nll_sum, kld_sum, top_agreement, dp_square_sum, klds FROM chunk_scores
        WHERE model = :model AND corpus = :corpus AND n_ctx = :n_ctx AND candidate = :candidate ORDER BY chunk"""
    scored_chunks = """
        SELECT chunk FROM chunk_scores
        WHERE model = :model AND corpus = :corpus AND n_ctx = :n_ctx AND candidate = :candidate"""

    record_swap_run = """
        INSERT INTO swap_runs (run, model, imatrix, corpus, n_ctx, kernels, base_kernels)
        VALUES (:run, :model, :imatrix, :corpus, :n_ctx, :kernels, :base_kernels) ON CONFLICT (run) DO NOTHING"""
    scored_mixes = "SELECT mix, COUNT(*) FROM mix_scores WHERE run = ? GROUP BY mix"
    swap_runs = """
        SELECT model, imatrix, corpus, n_ctx, kernels, base_kernels FROM swap_runs LEFT JOIN history ON kind = 'swap run' AND key = run
        WHERE model = ? ORDER BY recorded DESC, run"""
    record_mix = """
        INSERT INTO mixes (model, mix, purpose, document) VALUES (:model, :mix, :purpose, :document)
        ON CONFLICT (model, mix, purpose) DO UPDATE SET document = excluded.document"""
    mixes = "SELECT mix, document FROM mixes WHERE model = ? AND purpose = ? ORDER BY mix"
    record_mix_score = """
        INSERT INTO mix_scores (run, mix, chunk, n_tokens, nll_sum, kld_sum, top_agreement, dp_square_sum)
        VALUES (:run, :mix, :index, :n_tokens, :nll_sum, :kld_sum, :top_agreement, :dp_square_sum)
        ON CONFLICT (run, mix, chunk) DO UPDATE SET n_tokens = excluded.n_tokens, nll_sum = excluded.nll_sum,
            kld_sum = excluded.kld_sum, top_agreement = excluded.top_agreement, dp_square_sum = excluded.dp_square_sum"""
    mix_scores = """
        SELECT mix, chunk, n_tokens, nll_sum, kld_sum, top_agreement, dp_square_sum FROM mix_scores
        WHERE run = ? ORDER BY mix, chunk"""

    record_strategy = """
        INSERT INTO strategies (fingerprint, model, method, document) VALUES (:fingerprint, :model, :method, :document)
        ON CONFLICT (fingerprint) DO UPDATE SET model = excluded.model, method = excluded.method, document = excluded.document"""
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
        INSERT INTO drafts (model, name, document, changed, revision) VALUES (?1, ?2, ?3, ?4, ?5)
        ON CONFLICT (model, name) DO UPDATE SET
            document = excluded.document, changed = excluded.changed, revision = max(drafts.revision + 1, excluded.revision)"""
    begin_draft = """
        INSERT INTO drafts (model, name, document, changed, revision) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING"""
    change_draft = """
        UPDATE drafts SET document = ?3, changed = ?4, revision = max(revision + 1, ?5)
        WHERE model = ?1 AND name = ?2 AND revision = ?6"""
    draft = "SELECT document, revision FROM drafts WHERE model = ? AND name = ?"
    draft_revision = "SELECT revision FROM drafts WHERE model = ? AND name = ?"
    drafts = "SELECT name, changed FROM drafts WHERE model = ? ORDER BY changed DESC, name"
    forget_draft = "DELETE FROM drafts WHERE model = ? AND name = ?"

    record_location = """
        INSERT INTO locations (kind, key, path, seen) VALUES (?, ?, ?, ?)
        ON CONFLICT (kind, key, path) DO UPDATE SET seen = excluded.seen"""
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
            WHERE model = :model AND kernels = 'as built' AND mix <> ''
                AND mix NOT IN (SELECT mix FROM mixes WHERE model = :model AND purpose = 'stored')),
        runs AS (SELECT SUM(mix LIKE '%=%') AS n_cells, SUM(mix NOT LIKE '%=%') AS n_mixes FROM scored GROUP BY run)
        SELECT (SELECT COUNT(*) FROM strategies WHERE model = :model), (SELECT COUNT(*) FROM verdicts WHERE model = :model),
            COALESCE(MAX(n_cells), 0), COALESCE(MAX(n_mixes), 0) FROM runs"""
    builds = """
        SELECT path FROM locations JOIN strategies ON kind = 'build' AND key = fingerprint WHERE model = ? ORDER BY seen DESC, path"""
    note = """
        INSERT INTO history (kind, key, recorded) VALUES (?, ?, ?)
        ON CONFLICT (kind, key) DO UPDATE SET recorded = excluded.recorded"""
