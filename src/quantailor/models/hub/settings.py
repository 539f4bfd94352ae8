"""Where the hub is, where its files are kept, and who is logged in; read when asked for, not at import.

huggingface_hub reads its HF_* variables once, when it is imported. These functions follow the same rules at the moment
of the call, and their answers are passed on explicitly.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from quantailor.errors import TokenInvalidError
from quantailor.files import expanded

DEFAULT_ENDPOINT = "https://huggingface.co"
_TRUE = ("1", "ON", "YES", "TRUE")
_MAX_TOKEN_BYTES = 4096


@dataclass(frozen=True, slots=True)
class HubSettings:
    """What the environment says."""

    endpoint: str
    cache_folder: Path
    offline: bool

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> HubSettings:
        """From HF_ENDPOINT, HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME and HF_HUB_OFFLINE."""
        endpoint = (environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        cache = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or str(_home(environ) / "hub")
        offline = environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE") or ""
        return cls(endpoint, _expanded(cache), offline.upper() in _TRUE)

    def repo_folder(self, repo_id: str) -> Path:
        """Where huggingface_hub keeps a model's files."""
        return self.cache_folder / f"models--{repo_id.replace('/', '--')}"


class Token:
    """An access token that shows itself to nobody but the hub: not printed, not stored, not copied to another process."""

    __slots__ = ("_secret", "origin")

    def __init__(self, secret: str | None, origin: str) -> None:
        self._secret = secret
        self.origin = origin
        """Where it was found, for messages."""

    def __bool__(self) -> bool:
        return self._secret is not None

    def __repr__(self) -> str:
        return f"Token({self.origin})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a token is not to be stored")

    def for_hub(self) -> str | Literal[False]:
        """What huggingface_hub takes: the secret, or False so that it does not look for one itself."""
        return False if self._secret is None else self._secret


def find_token(token_file: Path | None = None, *, environ: Mapping[str, str] = os.environ) -> Token:
    """The token of a file, else of HF_TOKEN, else the one that `hf auth login` keeps; an empty Token where there is none.

    Raises TokenInvalidError where the file given cannot be read or holds no token.
    """
    if token_file is not None:
        return Token(_from_file(token_file), "--token-file")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if secret := environ.get(name, "").strip():
            return Token(secret, name)
    if environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in _TRUE:
        return Token(None, "you are not logged in")
    stored = _expanded(environ.get("HF_TOKEN_PATH") or str(_home(environ) / "token"))
    kept = _logged_in(stored)
    return Token(kept, "hf auth login") if kept else Token(None, "you are not logged in")


def _from_file(path: Path) -> str:
    # A token that was given in place of its file must not come back in a message.
    shown = "the token file" if path.name.startswith("hf_") else f"the token file {path}"
    try:
        with path.expanduser().open("rb") as stream:
            text = stream.read(_MAX_TOKEN_BYTES + 1)
    except (OSError, ValueError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "no path"
        raise TokenInvalidError(f"{shown} cannot be read: {why}", remedy="--token-file takes a file that holds the token") from None
    words = text.split()
    if len(words) != 1 or len(text) > _MAX_TOKEN_BYTES or not all(32 < byte < 127 for byte in words[0]):
        raise TokenInvalidError(f"{shown} does not hold one token", remedy="It must hold the token and nothing else")
    return words[0].decode("ascii")


def _logged_in(path: Path) -> str | None:
    """The token of `hf auth login`; huggingface_hub renews one that is about to expire."""
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    if not secret:
        return None
    return _renewed(path) or secret


def _renewed(path: Path) -> str | None:
    from huggingface_hub import constants, get_token

    if _expanded(constants.HF_TOKEN_PATH) != path:
        return None
    try:
        return get_token()
    except Exception:
        # No network or a refused renewal: the hub will judge the old one.
        return None


def _home(environ: Mapping[str, str]) -> Path:
    stored = environ.get("HF_HOME")
    if stored:
        return _expanded(stored)
    cache = environ.get("XDG_CACHE_HOME") or str(Path("~") / ".cache")
    return _expanded(cache) / "huggingface"


def _expanded(text: str) -> Path:
    return expanded(os.path.expandvars(text)).absolute()
