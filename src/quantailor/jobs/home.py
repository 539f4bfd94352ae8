"""Where Quantailor keeps its database, logs and reusable files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from quantailor.errors import StoreError
from quantailor.files import expanded

VARIABLE = "QUANTAILOR_HOME"


@dataclass(frozen=True, slots=True)
class Home:
    """One folder with everything that outlives a command."""

    path: Path

    @property
    def database(self) -> Path:
        return self.path / "quantailor.db"

    @property
    def logs(self) -> Path:
        """What detached workers print."""
        return self.path / "logs"

    @property
    def references(self) -> Path:
        """Files that llama.cpp quantized, to compare with."""
        return self.path / "references"

    @property
    def imatrices(self) -> Path:
        return self.path / "imatrices"

    @property
    def covariances(self) -> Path:
        """Input covariances; may be deleted where they were computed, they are computed again."""
        return self.path / "covariances"

    @property
    def bases(self) -> Path:
        """Conversions of Hugging Face directories that nobody gave another place."""
        return self.path / "bases"

    @property
    def base_logp(self) -> Path:
        """Log-probabilities of bases on texts; may be deleted, they are computed again."""
        return self.path / "base-logp"

    @property
    def timing(self) -> Path:
        """Files that `speed` times, a folder for each job; gone when it ends."""
        return self.path / "timing"

    def log_of(self, job_id: int) -> Path:
        """The file that a detached job prints to."""
        return self.logs / f"job-{job_id}.log"

    def create(self) -> Home:
        """Make the folders that are missing; raises StoreError where that is not allowed."""
        for folder in (self.path, self.logs, self.references, self.imatrices, self.covariances, self.bases, self.base_logp):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = error.strerror or str(error)
                raise StoreError(
                    f"cannot create the folder {folder}: {reason}", remedy=f"Choose another place with --home or {VARIABLE}"
                ) from error
        return self


def resolve(home: Path | None = None) -> Home:
    """The given folder, else the one QUANTAILOR_HOME names, else the platform's place for user data."""
    chosen = home or os.environ.get(VARIABLE) or platformdirs.user_data_dir("quantailor", appauthor=False)
    return Home(expanded(chosen).absolute())
