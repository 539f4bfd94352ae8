"""What to take from a repository, by its listing, its index and its headers."""

from __future__ import annotations

from quantailor.errors import AlreadyQuantizedError
from quantailor.ggml.library import quantized_types
from quantailor.models.hub.choice import Choice, RepoFile, choose
from quantailor.models.hub.client import RepoAtCommit
from quantailor.models.hub.peeking import Structure, weight_names
from quantailor.models.huggingface import INDEX_NAME


def choose_files(repo: RepoAtCommit, gguf_file: str | None = None, imatrix_only: bool = False) -> Choice:
    """What to take from a repository; raises as `models.hub.choose` does, and HubError where the index cannot be read."""
    index = index_of(repo, gguf_file, imatrix_only)
    names = None if index is None else weight_names(repo, index)
    return choose(repo.files, repo_id=repo.repo_id, weight_names=names, gguf_file=gguf_file, imatrix_only=imatrix_only)


def index_of(repo: RepoAtCommit, gguf_file: str | None, imatrix_only: bool) -> RepoFile | None:
    """The safetensors index, where it says which files are needed."""
    if gguf_file is not None or imatrix_only:
        return None
    return next((file for file in repo.files if file.name == INDEX_NAME), None)


def check_header(choice: Choice, structure: Structure) -> None:
    """Raise AlreadyQuantizedError where a file whose name says nothing turns out to be quantized."""
    quantized = quantized_types(structure.tensors)
    if not choice.by_name and quantized:
        raise AlreadyQuantizedError(
            f"{choice.weights[0].name} is quantized already ({', '.join(quantized)})",
            remedy="Look for the 16-bit model, or name the file with --gguf-file to take it anyway",
        )
