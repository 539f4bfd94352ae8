"""A small Hugging Face hub on 127.0.0.1: what huggingface_hub asks for and sends, and the ways in which the real one refuses.

Large files (by their suffix) are kept elsewhere, as on the real hub: `resolve` redirects to a second server, which must
never see an access token. Every request is counted.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

Access = Literal["granted", "not-requested", "pending", "rejected", "no-permission"]

LARGE = (".safetensors", ".gguf", ".dat", ".model", ".imatrix")
_PIECE = 32 << 10
_TOLD: Mapping[Access, str] = {
    "not-requested": "Access to model {} is restricted and you are not in the authorized list. Visit {} to ask for access.",
    "pending": "Your request to access model {} is awaiting a review from the repo authors.",
    "rejected": "Your request to access model {} has been rejected by the repo's authors.",
    "no-permission": "Please enable access to public gated repositories in your fine-grained token settings to view this repository.",
}


@cache
def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@cache
def _sha1(data: bytes) -> str:
    """Git's kind of hash."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@dataclass
class HubRepo:
    """A repository and how it behaves."""

    files: dict[str, bytes]
    gated: Literal["auto", "manual"] | None = None
    private: bool = False
    card: dict[str, Any] = field(default_factory=lambda: {"license": "apache-2.0"})
    tags: list[str] = field(default_factory=list)
    branches: tuple[str, ...] = ("main",)
    listed_sizes: dict[str, int] = field(default_factory=dict)
    """Sizes that the listing tells instead of the true ones."""
    served: dict[str, bytes] = field(default_factory=dict)
    """Content that is sent instead of the listed one."""

    @property
    def sha(self) -> str:
        listing = json.dumps({name: _sha256(data) for name, data in sorted(self.files.items())})
        return _sha1(listing.encode())

    def etag(self, name: str) -> str:
        data = self.files[name]
        if name.endswith(LARGE):
            return _sha256(data)
        return _sha1(f"blob {len(data)}\0".encode() + data)


@dataclass(frozen=True)
class Asked:
    """One request."""

    server: Literal["hub", "cdn"]
    method: str
    path: str
    authorization: str | None
    range: str | None


class HubServer:
    """The hub and the place of its large files; start it with `running_hub`."""

    def __init__(self) -> None:
        self.repos: dict[str, HubRepo] = {}
        self.past: dict[tuple[str, str], HubRepo] = {}
        """Repositories as they were, by name and commit."""
        self.users: dict[str, Access] = {}
        self.token = f"hf_{secrets.token_hex(17)}"
        """A token of a user who may read everything; nothing may ever show it."""
        self.users[self.token] = "granted"
        self.asked: list[Asked] = []
        self.bytes_per_second: float | None = None
        self.limited = 0
        """So many requests to come are answered with 429."""
        self.retry_after: str | None = "0"
        self.broken = 0
        """So many transfers of large files to come are answered with 500."""
        self.failing: int | None = None
        """A status for every request."""
        self.cut: set[str] = set()
        """Files whose next transfer breaks off in the middle."""
        self.ignores_ranges = False
        self.page_size = 1000
        self.uploaded: dict[str, bytes] = {}
        """Large files that were sent, by their SHA-256; a commit may name them."""
        self._lock = threading.Lock()
        self._hub, self._cdn = (ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, kind)) for kind in ("hub", "cdn"))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._hub.server_port}"

    @property
    def cdn_url(self) -> str:
        return f"http://127.0.0.1:{self._cdn.server_port}"

    def user(self, access: Access) -> str:
        """A token of another user."""
        token = f"hf_{secrets.token_hex(17)}"
        self.users[token] = access
        return token

    def add(self, repo_id: str, files: Mapping[str, bytes] | Path, **options: Any) -> HubRepo:
        """A repository with these files, or with those of a directory; one of that name moves on and keeps its commits."""
        if before := self.repos.get(repo_id):
            self.past[repo_id, before.sha] = before
        found = {path.name: path.read_bytes() for path in files.iterdir()} if isinstance(files, Path) else dict(files)
        self.repos[repo_id] = HubRepo(found, **options)
        return self.repos[repo_id]

    def forget(self, repo_id: str, sha: str) -> None:
        """Lose a commit, as a force-push does."""
        del self.past[repo_id, sha]

    def at(self, repo_id: str, revision: str) -> HubRepo | None:
        """The repository at a commit that it had before, else as it is."""
        repo = self.repos.get(repo_id)
        return self.past.get((repo_id, revision), repo) if repo is not None and revision != repo.sha else repo

    def environment(self, folder: Path) -> dict[str, str]:
        """Variables that make this the hub, with a cache of its own."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def use(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        """Make this the hub of this process."""
        from huggingface_hub import constants

        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN_PATH"):
            monkeypatch.delenv(name, raising=False)
        for name, value in self.environment(folder).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)

    def gets(self, name: str) -> int:
        """How often the content of a file was asked for."""
        server = "cdn" if name.endswith(LARGE) else "hub"
        paths = [unquote(urlsplit(asked.path).path) for asked in self.asked if (asked.server, asked.method) == (server, "GET")]
        return sum(path.endswith(f"/{name}") for path in paths)

    def note(self, asked: Asked) -> bool:
        """Count a request; whether it is to be turned away."""
        with self._lock:
            self.asked.append(asked)
            turned_away = asked.server == "hub" and self.limited > 0
            self.limited -= turned_away
            return turned_away

    def breaks(self) -> bool:
        """Whether this transfer of a large file fails."""
        with self._lock:
            self.broken -= (found := self.broken > 0)
            return found

    def break_off(self, name: str) -> bool:
        with self._lock:
            found = name in self.cut
            self.cut.discard(name)
            return found

    def start(self) -> None:
        for server in (self._hub, self._cdn):
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        for server in (self._hub, self._cdn):
            server.shutdown()
            server.server_close()


@contextmanager
def running_hub() -> Iterator[HubServer]:
    """A hub until the block ends."""
    from huggingface_hub import close_session

    server = HubServer()
    server.start()
    try:
        yield server
    finally:
        close_session()
        server.stop()


def assert_no_token(server: HubServer, folder: Path, *texts: str) -> None:
    """No token of any user in these texts, in any file but token files, in any address, or at the other server."""
    for token in server.users:
        for text in texts:
            assert token not in text
        for path in folder.rglob("*"):
            if path.is_file() and not path.name.startswith("token"):
                assert token.encode() not in path.read_bytes(), path
        for asked in server.asked:
            assert token not in asked.path
            assert asked.server == "hub" or asked.authorization is None


def _handler(hub: HubServer, kind: Literal["hub", "cdn"]) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        server_kind = kind
        state = hub

    return Handler


class _Handler(BaseHTTPRequestHandler):
    server_kind: Literal["hub", "cdn"]
    state: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def _handle(self) -> None:
        try:
            asked = Asked(self.server_kind, self.command, self.path, self.headers.get("Authorization"), self.headers.get("Range"))
            if self.state.note(asked):
                extra = {} if self.state.retry_after is None else {"Retry-After": self.state.retry_after}
                self._answer(429, b"", extra)
            elif self.state.failing is not None:
                self._answer(self.state.failing, b"")
            elif self.server_kind == "cdn" and self.state.breaks():
                self._answer(500, b"")
            elif self.command == "PUT":
                data = self._body()
                self.state.uploaded[_sha256(data)] = data
                self._answer(200, b"")
            elif self.command == "POST":
                self._write(urlsplit(self.path).path.split("/")[1:], self._body())
            elif self.server_kind == "cdn":
                address = urlsplit(self.path)
                self._content(unquote(address.path).removeprefix("/"), commit=parse_qs(address.query)["commit"][0])
            else:
                self._route(urlsplit(self.path).path.split("/")[1:])
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _route(self, parts: list[str]) -> None:
        parts = [unquote(part) for part in parts]
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            repo_id, rest = "/".join(parts[2:4]), parts[4:]
            revision = rest[1] if rest[:1] in (["revision"], ["tree"]) and len(rest) > 1 else "main"
            repo = self._repo(repo_id, revision)
            if repo is not None:
                self._json(self._tree(repo_id, repo) if rest[:1] == ["tree"] else self._info(repo_id, repo))
        elif len(parts) > 4 and parts[2] == "resolve":
            repo_id, name = "/".join(parts[:2]), "/".join(parts[4:])
            repo = self._repo(repo_id, parts[3])
            if repo is not None and self._may_read(repo_id, repo):
                self._resolve(repo_id, repo, name)
        else:
            self._refuse(404, "", "")

    def _body(self) -> bytes:
        """What was sent, in one piece or in chunks that each tell their length."""
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        pieces = list[bytes]()
        while n_bytes := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(n_bytes))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _write(self, parts: list[str], body: bytes) -> None:
        if self.state.users.get(self._token or "") != "granted":
            self._refuse(403, "", "You don't have the rights to create a model under this namespace")
        elif parts == ["api", "validate-yaml"]:
            self._json({"errors": [], "warnings": []})
        elif parts == ["api", "repos", "create"]:
            told = json.loads(body)
            repo_id = f"{told['organization']}/{told['name']}"
            is_new = repo_id not in self.state.repos
            if is_new:
                self.state.add(repo_id, {}, private=told.get("visibility") == "private")
            self._answer(200 if is_new else 409, json.dumps({"url": f"{self.state.url}/{repo_id}"}).encode())
        elif parts[-1] == "batch":
            self._batch(json.loads(body)["objects"])
        elif parts[4] == "preupload":
            modes = ((each["path"], "lfs" if each["path"].endswith(LARGE) else "regular") for each in json.loads(body)["files"])
            self._json({"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes]})
        else:
            self._commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines()])

    def _batch(self, objects: list[dict[str, Any]]) -> None:
        def answer(oid: str) -> dict[str, Any]:
            return {} if oid in self.state.uploaded else {"actions": {"upload": {"href": f"{self.state.cdn_url}/upload/{oid}"}}}

        self._json({"transfer": "basic", "objects": [{**each, **answer(each["oid"])} for each in objects]})

    def _commit(self, repo_id: str, lines: list[dict[str, Any]]) -> None:
        repo, values = self.state.repos[repo_id], [line["value"] for line in lines if line["key"] != "header"]
        large, small = [each for each in values if "oid" in each], [each for each in values if "content" in each]
        sent = {each["path"]: base64.b64decode(each["content"]) for each in small}
        sent |= {each["path"]: self.state.uploaded[each["oid"]] for each in large}
        self.state.add(repo_id, {**repo.files, **sent}, private=repo.private)
        self._json({"commitUrl": f"{self.state.url}/{repo_id}/commit/x", "commitOid": self.state.repos[repo_id].sha})

    # Access

    @property
    def _token(self) -> str | None:
        header = self.headers.get("Authorization")
        return header.removeprefix("Bearer ") if header else None

    def _repo(self, repo_id: str, revision: str) -> HubRepo | None:
        """The repository, or None where the refusal was sent."""
        repo, token = self.state.at(repo_id, revision), self._token
        if token is not None and token not in self.state.users:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repo is None or (repo.private and (token is None or self.state.users[token] != "granted")):
            self._refuse(401 if token is None else 404, "RepoNotFound", "Repository not found")
        elif revision not in (*repo.branches, repo.sha):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repo
        return None

    def _may_read(self, repo_id: str, repo: HubRepo) -> bool:
        if repo.gated is None:
            return True
        token = self._token
        if token is None:
            told = f"Access to model {repo_id} is restricted. You must have access to it and be authenticated to access it. Please log in."
            self._refuse(401, "GatedRepo", told)
            return False
        access = self.state.users[token]
        if access != "granted":
            page = f"{self.state.url}/{repo_id}"
            self._refuse(403, "" if access == "no-permission" else "GatedRepo", _TOLD[access].format(repo_id, page))
        return access == "granted"

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message, "Content-Type": "application/json"}
        # A server may send back what it got; nobody is to see it.
        told = f"{message} ({self.headers.get('Authorization')})"
        self._answer(status, json.dumps({"error": told}).encode(), headers | ({"X-Error-Code": code} if code else {}))

    # Answers

    def _info(self, repo_id: str, repo: HubRepo) -> dict[str, Any]:
        siblings = [{"rfilename": name} for name in repo.files]
        about = {"id": repo_id, "modelId": repo_id, "sha": repo.sha, "private": repo.private, "gated": repo.gated or False}
        return about | {"tags": repo.tags, "cardData": repo.card, "siblings": siblings, "downloads": 0, "likes": 0}

    def _tree(self, repo_id: str, repo: HubRepo) -> list[dict[str, Any]]:
        names = list(repo.files)
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        if start + self.state.page_size < len(names):
            query = f"recursive=true&cursor={start + self.state.page_size}"
            self._next = f'<{self.state.url}/api/models/{repo_id}/tree/{repo.sha}?{query}>; rel="next"'
        return [self._entry(repo, name) for name in names[start : start + self.state.page_size]]

    def _entry(self, repo: HubRepo, name: str) -> dict[str, Any]:
        size = repo.listed_sizes.get(name, len(repo.files[name]))
        entry = {"type": "file", "path": name, "size": size, "oid": _sha1(name.encode())}
        if name.endswith(LARGE):
            return entry | {"lfs": {"oid": repo.etag(name), "size": size, "pointerSize": 134}}
        return entry | {"oid": repo.etag(name)}

    _next: str | None = None

    def _json(self, value: Any) -> None:
        headers = {"Content-Type": "application/json"} | ({"Link": self._next} if self._next else {})
        self._next = None
        self._answer(200, json.dumps(value).encode(), headers)

    def _resolve(self, repo_id: str, repo: HubRepo, name: str) -> None:
        if name not in repo.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        headers = {"X-Repo-Commit": repo.sha, "ETag": f'"{repo.etag(name)}"'}
        if not name.endswith(LARGE):
            self._content(f"{repo_id}/{name}", headers, commit=repo.sha)
            return
        headers |= {"X-Linked-Etag": f'"{repo.etag(name)}"', "X-Linked-Size": str(repo.listed_sizes.get(name, len(repo.files[name])))}
        self._answer(
            302, b"", headers | {"Location": f"{self.state.cdn_url}/{quote(f'{repo_id}/{name}')}?signature=secret&commit={repo.sha}"}
        )

    def _content(self, path: str, headers: Mapping[str, str] | None = None, *, commit: str) -> None:
        org, name, file = path.split("/", 2)
        repo = self.state.at(f"{org}/{name}", commit)
        assert repo is not None
        data = repo.served.get(file, repo.files[file])
        wanted = self.headers.get("Range")
        answer: dict[str, str] = {**(headers or {}), "Accept-Ranges": "bytes"}
        status, start, stop = 200, 0, len(data)
        if wanted and not self.state.ignores_ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            status, start, stop = 206, int(first), min(len(data), int(last) + 1 if last else len(data))
            answer["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        self._answer(status, data[start:stop], answer, cut=self.command == "GET" and self.state.break_off(file))

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, *, cut: bool = False) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut:
            body = body[: len(body) // 2]
            self.close_connection = True
        for start in range(0, len(body), _PIECE):
            self.wfile.write(body[start : start + _PIECE])
            if self.state.bytes_per_second and self.server_kind == "cdn":
                time.sleep(min(_PIECE, len(body) - start) / self.state.bytes_per_second)
