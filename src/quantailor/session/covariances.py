"""A home's input covariances: kept, found again, chosen."""

from __future__ import annotations

import shutil
from pathlib import Path

from quantailor import files
from quantailor.analysis.covariances.covariance_file import CovarianceFile
from quantailor.errors import CovarianceError
from quantailor.jobs import Home
from quantailor.session.imatrices import AUTO, NONE, n_tokens
from quantailor.session.opened import OpenedModel
from quantailor.store import CalibrationRecord, ImatrixKey, Store


class KeptCovariances:
    """The covariances of every model of a home."""

    def __init__(self, home: Home, store: Store) -> None:
        self._home = home
        self._store = store

    def path(self, model: str, covariances: str) -> Path:
        """Where the home keeps those covariances."""
        return self._home.covariances / f"{model[:16]}-{covariances[:16]}.gguf"

    def keep(self, model: str, file: Path, *, imported: bool, computed: ImatrixKey | None = None) -> CovarianceFile:
        """Bring a whole file of covariances to its place, unless it is there, and record it.

        Raises CovarianceError where it is damaged or of another model.
        """
        with CovarianceFile(file) as found:
            description, fingerprint = found.description, found.fingerprint
            _require_of(model, found)
            place = self.path(model, fingerprint)
            if imported:
                found.check()
        if file != place and self.intact(model, fingerprint) is None:
            with files.writing(place):
                if imported:
                    with files.whole_file(place) as stream, file.open("rb") as source:
                        shutil.copyfileobj(source, stream, 1 << 20)
                else:
                    file.replace(place)
        elif not imported and file != place:
            with files.writing(file):
                file.unlink()
        seen = description.datasets, description.chunk_count, description.chunk_size
        record = CalibrationRecord(model, fingerprint, *seen, "imported" if imported else "computed")
        self._store.record_covariances(record, computed=computed)
        return CovarianceFile(place)

    def require_of(self, model: str, file: Path) -> None:
        """Raise CovarianceError where a file is none of covariances, or of another model's."""
        with CovarianceFile(file) as found:
            _require_of(model, found)

    def intact(self, model: str, covariances: str) -> CovarianceFile | None:
        """The covariances of that fingerprint; None where their file is gone or is not what was written."""
        try:
            found = CovarianceFile(self.path(model, covariances))
            found.check()
        except CovarianceError:
            return None
        return found if found.fingerprint == covariances else None

    def default(self, model: str) -> CovarianceFile | None:
        """Of a model's covariances whose files are there, those that saw most tokens, and of these the latest.

        Raises CovarianceError where they are damaged.
        """
        chosen = next(iter(self.stored(model)), None)
        return None if chosen is None else CovarianceFile(self.path(model, chosen.fingerprint))

    def stored(self, model: str) -> list[CalibrationRecord]:
        """A model's covariances whose files are there, the model's own first: those that saw most tokens, of these the latest."""
        records = [one for one in self._store.covariances(model) if self.path(model, one.fingerprint).exists()]
        return sorted(records, key=n_tokens, reverse=True)

    def choose(self, model: OpenedModel, wanted: str) -> CovarianceFile | None:
        """What `--covariances` means: "auto" the model's own, "none" nothing, else a file (which is then kept).

        Raises CovarianceError where the file cannot be read, is damaged or belongs to another model.
        """
        if wanted == NONE:
            return None
        if wanted == AUTO:
            return self.default(model.fingerprint)
        with CovarianceFile(Path(wanted)) as found:
            if found.path == self.path(model.fingerprint, found.fingerprint):
                return CovarianceFile(found.path)  # each matrix is looked at when it is read
            known = [record.fingerprint for record in self._store.covariances(model.fingerprint)]
            kept = self.intact(model.fingerprint, found.fingerprint) if found.fingerprint in known else None
        return kept or self.keep(model.fingerprint, Path(wanted), imported=True)


def _require_of(model: str, found: CovarianceFile) -> None:
    of = found.description.model
    if of != model:
        raise CovarianceError(
            f"{found.path} holds covariances of model {of[:12]}, not of {model[:12]}",
            remedy="Compute them for this model with `quantailor calibrate`",
        )
