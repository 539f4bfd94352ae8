-- Results: natural keys, no clocks, no row ids, so that a resumed run leaves exactly what an uninterrupted one leaves.

CREATE TABLE models (
    fingerprint TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    architecture TEXT NOT NULL,
    n_tensors INTEGER NOT NULL,
    n_elements INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE tensors (
    model TEXT NOT NULL REFERENCES models (fingerprint) ON DELETE CASCADE,
    name TEXT NOT NULL,
    position INTEGER NOT NULL,
    shape TEXT NOT NULL,
    type_name TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    PRIMARY KEY (model, name)
) WITHOUT ROWID;

CREATE TABLE cells (
    model TEXT NOT NULL,
    imatrix TEXT NOT NULL,
    settings TEXT NOT NULL,
    definition_version INTEGER NOT NULL,
    tensor TEXT NOT NULL,
    type_name TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    bits_per_weight REAL NOT NULL,
    n_rows_measured INTEGER NOT NULL,
    n_rows_total INTEGER NOT NULL,
    rmse REAL,
    max_abs_error REAL,
    relative_mse REAL,
    sqnr_db REAL,
    weighted_mse REAL,
    output_error REAL,
    rmse_se REAL NOT NULL,
    relative_mse_se REAL NOT NULL,
    weighted_mse_se REAL NOT NULL,
    output_error_se REAL NOT NULL,
    error_quantiles BLOB NOT NULL,
    error_quantiles_se BLOB NOT NULL,
    histogram BLOB NOT NULL,
    n_unseen_experts INTEGER NOT NULL,
    unavailable TEXT,
    output_mse REAL,
    output_mse_se REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (model, imatrix, settings, definition_version, tensor, type_name),
    FOREIGN KEY (model, tensor) REFERENCES tensors (model, name) ON DELETE CASCADE
) WITHOUT ROWID;

CREATE INDEX cells_by_tensor ON cells (model, tensor);

CREATE TABLE imatrices (
    model TEXT NOT NULL REFERENCES models (fingerprint) ON DELETE CASCADE,
    fingerprint TEXT NOT NULL,
    datasets TEXT NOT NULL,
    chunk_count INTEGER NOT NULL,
    chunk_size INTEGER NOT NULL,
    origin TEXT NOT NULL CHECK (origin IN ('computed', 'imported')),
    PRIMARY KEY (model, fingerprint)
) WITHOUT ROWID;

-- Which imatrix a computation gave, so that the same request finds it again.
CREATE TABLE imatrix_computations (
    model TEXT NOT NULL,
    corpus TEXT NOT NULL,
    n_ctx INTEGER NOT NULL,
    options TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    PRIMARY KEY (model, corpus, n_ctx, options),
    FOREIGN KEY (model, fingerprint) REFERENCES imatrices (model, fingerprint) ON DELETE CASCADE
) WITHOUT ROWID;

CREATE INDEX imatrix_computations_by_result ON imatrix_computations (model, fingerprint);

-- A rowid table, because the state may be large.
CREATE TABLE imatrix_progress (
    model TEXT NOT NULL REFERENCES models (fingerprint) ON DELETE CASCADE,
    corpus TEXT NOT NULL,
    n_ctx INTEGER NOT NULL,
    options TEXT NOT NULL,
    n_chunks_done INTEGER NOT NULL,
    state BLOB NOT NULL,
    PRIMARY KEY (model, corpus, n_ctx, options)
);

CREATE TABLE chunk_scores (
    model TEXT NOT NULL REFERENCES models (fingerprint) ON DELETE CASCADE,
    corpus TEXT NOT NULL,
    n_ctx INTEGER NOT NULL,
    candidate TEXT NOT NULL,
    chunk INTEGER NOT NULL,
    n_tokens INTEGER NOT NULL,
    nll_sum REAL NOT NULL,
    kld_sum REAL NOT NULL,
    top_agreement INTEGER NOT NULL,
    dp_square_sum REAL NOT NULL,
    klds BLOB NOT NULL,
    PRIMARY KEY (model, corpus, n_ctx, candidate, chunk)
) WITHOUT ROWID;

CREATE TABLE strategies (
    fingerprint TEXT NOT NULL PRIMARY KEY,
    model TEXT NOT NULL REFERENCES models (fingerprint) ON DELETE CASCADE,
    method TEXT NOT NULL,
    document TEXT NOT NULL
) WITHOUT ROWID;

CREATE INDEX strategies_by_model ON strategies (model);

CREATE TABLE verdicts (
    fingerprint TEXT NOT NULL PRIMARY KEY,
    model TEXT NOT NULL REFERENCES models (fingerprint) ON DELETE CASCADE,
    strategy TEXT,
    document TEXT NOT NULL
) WITHOUT ROWID;

CREATE INDEX verdicts_by_model ON verdicts (model);

-- Not results: where files lie, when things were recorded, what jobs did.

CREATE TABLE locations (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    path TEXT NOT NULL,
    seen REAL NOT NULL,
    PRIMARY KEY (kind, key, path)
) WITHOUT ROWID;

CREATE TABLE history (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    recorded REAL NOT NULL,
    PRIMARY KEY (kind, key)
) WITHOUT ROWID;

CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    arguments TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'paused', 'interrupted', 'done', 'failed', 'cancelled')),
    requested TEXT NOT NULL DEFAULT '' CHECK (requested IN ('', 'pause', 'cancel')),
    attempt INTEGER NOT NULL DEFAULT 0,
    stage TEXT NOT NULL DEFAULT '',
    done REAL NOT NULL DEFAULT 0,
    total REAL NOT NULL DEFAULT 0,
    message TEXT NOT NULL DEFAULT '',
    rate REAL,
    eta_low_s REAL,
    eta_high_s REAL,
    created REAL NOT NULL,
    started REAL,
    heartbeat REAL,
    finished REAL,
    error TEXT,
    result TEXT,
    pid INTEGER,
    process_started REAL,
    host TEXT,
    log_path TEXT,
    unit TEXT NOT NULL DEFAULT '',
    stage_number INTEGER NOT NULL DEFAULT 0,
    n_stages INTEGER NOT NULL DEFAULT 0,
    hub_commit TEXT,
    hub_path TEXT,
    overall REAL
);

CREATE TABLE job_log (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    logged REAL NOT NULL,
    level TEXT NOT NULL,
    message TEXT NOT NULL
);

CREATE INDEX job_log_by_job ON job_log (job, id);

-- Scores of mixes of types, set in the loaded model or built as files. A run is what all scores of one kind share; its
-- key is a hash of the rest, so that a score's row stays short.

CREATE TABLE swap_runs (
    run TEXT NOT NULL PRIMARY KEY,
    model TEXT NOT NULL REFERENCES models (fingerprint) ON DELETE CASCADE,
    imatrix TEXT NOT NULL,
    corpus TEXT NOT NULL,
    n_ctx INTEGER NOT NULL,
    kernels TEXT NOT NULL CHECK (kernels IN ('as built', 'values', 'file')),
    base_kernels TEXT NOT NULL CHECK (base_kernels IN ('as stored', 'finer')),
    engine TEXT NOT NULL DEFAULT '',
    rounding TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;

CREATE INDEX swap_runs_by_model ON swap_runs (model);

CREATE TABLE mixes (
    model TEXT NOT NULL REFERENCES models (fingerprint) ON DELETE CASCADE,
    mix TEXT NOT NULL,
    purpose TEXT NOT NULL,
    document TEXT NOT NULL,
    PRIMARY KEY (model, mix, purpose)
) WITHOUT ROWID;

CREATE TABLE mix_scores (
    run TEXT NOT NULL REFERENCES swap_runs (run) ON DELETE CASCADE,
    mix TEXT NOT NULL,
    chunk INTEGER NOT NULL,
    n_tokens INTEGER NOT NULL,
    nll_sum REAL NOT NULL,
    kld_sum REAL NOT NULL,
    top_agreement INTEGER NOT NULL,
    dp_square_sum REAL NOT NULL,
    PRIMARY KEY (run, mix, chunk)
) WITHOUT ROWID;

-- Strategies in the making, with every edit; revisions count them, so that nobody overwrites what he has not seen.
CREATE TABLE drafts (
    model TEXT NOT NULL REFERENCES models (fingerprint) ON DELETE CASCADE,
    name TEXT NOT NULL,
    document TEXT NOT NULL,
    changed REAL NOT NULL,
    revision INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (model, name)
) WITHOUT ROWID;

-- Which model the files at a path are, as long as they stay as they were.
CREATE TABLE identities (
    path TEXT NOT NULL PRIMARY KEY,
    files TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    not_finite TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE covariances (
    model TEXT NOT NULL REFERENCES models (fingerprint) ON DELETE CASCADE,
    fingerprint TEXT NOT NULL,
    datasets TEXT NOT NULL,
    chunk_count INTEGER NOT NULL,
    chunk_size INTEGER NOT NULL,
    origin TEXT NOT NULL CHECK (origin IN ('computed', 'imported')),
    PRIMARY KEY (model, fingerprint)
) WITHOUT ROWID;

CREATE TABLE covariance_computations (
    model TEXT NOT NULL,
    corpus TEXT NOT NULL,
    n_ctx INTEGER NOT NULL,
    options TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    PRIMARY KEY (model, corpus, n_ctx, options),
    FOREIGN KEY (model, fingerprint) REFERENCES covariances (model, fingerprint) ON DELETE CASCADE
) WITHOUT ROWID;
