-- Scores of mixes of types, set in the loaded model or built as files. A run is what all scores of one kind share; its
-- key is a hash of the rest, so that a score's row stays short.

CREATE TABLE swap_runs (
    run TEXT NOT NULL PRIMARY KEY,
    model TEXT NOT NULL REFERENCES models (fingerprint) ON DELETE CASCADE,
    imatrix TEXT NOT NULL,
    corpus TEXT NOT NULL,
    n_ctx INTEGER NOT NULL,
    kernels TEXT NOT NULL CHECK (kernels IN ('as built', 'values', 'file')),
    base_kernels TEXT NOT NULL CHECK (base_kernels IN ('as stored', 'finer'))
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
