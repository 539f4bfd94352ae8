"""What a hub may answer: odd listings, names, sizes and headers end in a report or one clear line, and no name leaves its folder."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx2
import pytest
from gguf_files import joined
from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import default_client_factory
from mutations import change_json, mutate_bytes, mutate_header, mutate_index, mutate_name
from odd_values import ODD, TEXTS

import fuzzing
from quantailor.app.library.hub import peek
from quantailor.errors import QuantailorError
from quantailor.models.hub import RepoFile, Token, choose
from tiny_models import write_tiny

pytestmark = pytest.mark.slow

N_LISTINGS, N_ANSWERS = 3000, 700
NOBODY = Token(None, "you are not logged in")
LONGEST_MESSAGE = 500
_NAMES = (
    *("config.json", "tokenizer.json", "model.safetensors", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    *(
        "m-bf16.gguf",
        "BF16/m-BF16-00001-of-00002.gguf",
        "BF16/m-BF16-00002-of-00002.gguf",
        "m-Q4_K.gguf",
        "imatrix.dat",
        "pytorch_model.bin",
    ),
)


def assert_told(error: QuantailorError) -> None:
    assert str(error).isprintable()
    assert 0 < len(str(error)) < LONGEST_MESSAGE, str(error)


def assert_inside(name: str) -> None:
    """A name that is opened below a folder stays there."""
    root = Path("/cache/snapshots/commit")
    place = root / name
    assert place.is_relative_to(root)
    assert place != root
    assert ".." not in place.parts
    assert name.isprintable()


def test_odd_listings_choose_files_inside_their_folder() -> None:
    rng, n_listings = random.Random(f"listings {fuzzing.seed()}"), fuzzing.n_cases(N_LISTINGS, share=5)
    n_chosen = 0
    for _ in range(n_listings):
        names = rng.sample(_NAMES, rng.randint(1, 6))
        names = [mutate_name(name, rng) if rng.random() < 0.4 else name for name in names] * rng.choice((1, 1, 20))
        files = [RepoFile(name, rng.choice((0, 1, 2**70)), "0" * 40) for name in names]
        options: dict[str, Any] = rng.choice(
            ({}, {}, {"imatrix_only": True}, {"gguf_file": rng.choice(names)}, {"weight_names": {*names[:2]}})
        )
        try:
            found = choose(files, repo_id="org/name", **options)
        except QuantailorError as error:
            assert_told(error)
            continue
        n_chosen += 1
        for file in found.files:
            assert_inside(file.name)
            assert file in files
    assert n_listings // 10 < n_chosen < n_listings


class OddHub:
    """A hub that answers without a network, as `change` makes of the truth."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.info: Any = {"id": "org/name", "sha": "c" * 40, "private": False, "gated": False, "tags": ["license:mit"], "siblings": []}
        self.info |= {"cardData": {"license": "mit"}, "safetensors": {"parameters": {"BF16": 10}, "total": 10}}
        self.tree: Any = [self._entry(name, data) for name, data in files.items()]

    def _entry(self, name: str, data: bytes) -> dict[str, Any]:
        git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": git}
        if name.endswith((".safetensors", ".gguf")):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    def client(self) -> httpx2.Client:
        return httpx2.Client(transport=httpx2.MockTransport(self._answer), follow_redirects=True)

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        path = unquote(request.url.path)
        if "/tree/" in path:
            return self._json(self.tree)
        if path.startswith("/api/models/"):
            return self._json(self.info)
        data = self.files.get(path.partition("/resolve/")[2].partition("/")[2])
        if data is None:
            return httpx2.Response(404)
        first, _, last = request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else None]
        return httpx2.Response(206, content=part)

    def _json(self, value: Any) -> httpx2.Response:
        return httpx2.Response(200, content=json.dumps(value).encode(), headers={"Content-Type": "application/json"})


@pytest.fixture
def checkpoint(tmp_path: Path) -> dict[str, bytes]:
    """A small model of two files with an index."""
    return {path.name: path.read_bytes() for path in write_tiny("llama3-tied", tmp_path).iterdir()}


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    yield
    set_client_factory(default_client_factory)


def looked_at(hub: OddHub) -> bool:
    """Whether a report came out; what it names lies inside the repository's folder."""
    set_client_factory(hub.client)
    try:
        report = peek("org/name", token=NOBODY)
    except QuantailorError as error:
        assert_told(error)
        return False
    for file in report.files:
        assert_inside(file.name)
    assert report.architecture.isprintable()
    assert report.license is None or report.license.isprintable()
    assert all(tensor.name.isprintable() for tensor in report.tensors)
    assert report.why_not_convertible is None or report.why_not_convertible.isprintable()
    return True


def _odd_tree(hub: OddHub, rng: random.Random) -> None:
    for entry in rng.sample(hub.tree, min(rng.randint(1, 3), len(hub.tree))):
        action = rng.randrange(4)
        if action == 0:
            entry["path"] = mutate_name(entry["path"], rng)
        elif action == 1:
            entry["path"] = rng.choice(TEXTS)
        elif action == 2:
            entry["oid"] = rng.choice(("../../x", "", "0" * 40, "g" * 40, "A" * 40, 3, None))
        else:
            place = entry["lfs"] if "lfs" in entry and rng.random() < 0.5 else entry
            place[rng.choice(list(place))] = rng.choice(ODD)
    if rng.random() < 0.3:
        hub.tree.append({**rng.choice(hub.tree)})


def _damage(hub: OddHub, rng: random.Random) -> None:
    """One thing that the hub says or sends is not as it was."""
    kind = rng.randrange(5)
    if kind == 0:
        change_json(hub.info, rng)
    elif kind == 1:
        _odd_tree(hub, rng)
    elif kind == 2:
        change_json(hub.tree, rng)
    elif kind == 3:
        name = rng.choice([name for name in hub.files if name.endswith(".safetensors")])
        hub.files[name] = mutate_header(hub.files[name], rng)
    else:
        name = rng.choice([name for name in hub.files if not name.endswith(".safetensors")])
        mutate = mutate_index if name.endswith(".index.json") else mutate_bytes
        hub.files[name] = mutate(hub.files[name], rng)
    if kind > 2 and rng.random() < 0.7:
        hub.tree = [hub._entry(name, data) for name, data in hub.files.items()]


@pytest.mark.usefixtures("_own_cache")
def test_odd_answers_give_a_report_or_one_clear_line(checkpoint: dict[str, bytes]) -> None:
    assert looked_at(OddHub(checkpoint))
    rng, n_answers, n_reports = random.Random(f"answers {fuzzing.seed()}"), fuzzing.n_cases(N_ANSWERS, share=7), 0
    for _ in range(n_answers):
        hub = OddHub(checkpoint)
        _damage(hub, rng)
        n_reports += looked_at(hub)
    assert n_answers // 10 < n_reports < n_answers


@pytest.mark.usefixtures("_own_cache")
def test_odd_gguf_headers_give_a_report_or_one_clear_line() -> None:
    rng, whole = random.Random(f"ggufs {fuzzing.seed()}"), {"m-bf16.gguf": joined()}
    assert looked_at(OddHub(whole))
    for _ in range(fuzzing.n_cases(N_ANSWERS // 2, share=7)):
        hub = OddHub({"m-bf16.gguf": mutate_bytes(whole["m-bf16.gguf"], rng)})
        if rng.random() < 0.3:
            _odd_tree(hub, rng)
        looked_at(hub)
