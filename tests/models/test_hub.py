"""The hub without commands: which files are chosen, what headers tell, what refusals say, and how tokens are kept."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import small_file
from hub_server import Access, HubServer, assert_no_token, running_hub
from hypothesis import given
from hypothesis import strategies as st

from quantailor.app.library.hub import peek
from quantailor.app.library.structure import inspect
from quantailor.errors import (
    AccessError,
    HubError,
    HubOfflineError,
    HubUnreachableError,
    RateLimitError,
    RepoFileNotFoundError,
    RepoNotFoundError,
    RevisionNotFoundError,
    TokenInvalidError,
    UnsupportedModelError,
)
from quantailor.models.gguf_writer import GGUFWriter, layout
from quantailor.models.hub import HubSettings, RepoFile, Token, choose, find_token
from quantailor.models.hub.choice import is_imatrix, is_plain
from quantailor.models.opening import open_model

SECRET = Token("hf_0123456789", "HF_TOKEN")
NOBODY = Token(None, "nobody")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[HubServer]:
    with running_hub() as server:
        server.use(monkeypatch, tmp_path)
        yield server
        assert_no_token(server, tmp_path, *capfd.readouterr())


def owner(hub: HubServer) -> Token:
    return Token(hub.token, "--token-file")


# Which files


def listed(*names: str) -> list[RepoFile]:
    return [RepoFile(name, 1000, "0" * 40) for name in names]


def chosen(*names: str, **options: Any) -> list[str]:
    return [file.name for file in choose(listed(*names), repo_id="org/name", **options).files]


def test_a_checkpoint_takes_weights_configuration_and_tokenizer_only() -> None:
    others = ("pytorch_model.bin", "original/consolidated.00.pth", "flax_model.msgpack", "consolidated.safetensors", "LICENSE", "x.onnx")
    needed = ("config.json", "tokenizer.json", "README.md", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert sorted(chosen(*others, *needed)) == sorted(needed)


def test_an_embedding_model_takes_what_says_how_it_pools() -> None:
    needed = ("config.json", "model.safetensors", "modules.json", "1_Pooling/config.json")
    assert set(chosen(*needed, "2_Dense/model.safetensors", "2_Dense/config.json", "sentence_bert_config.json")) == set(needed)


def test_the_index_says_which_weights() -> None:
    names = ("config.json", "a.safetensors", "b.safetensors", "model.safetensors", "model.safetensors.index.json")
    assert set(chosen(*names, weight_names={"a.safetensors", "b.safetensors"})) == set(names) - {"model.safetensors"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("m-F16.gguf", "m-BF16.gguf", "m-f32.gguf", "m-Q4_K_M.gguf"), ["m-BF16.gguf"]),
        (("m-fp16.gguf", "m.f32.gguf", "m.Q8_0.gguf"), ["m-fp16.gguf"]),
        (("m.gguf", "m-IQ2_XXS.gguf"), ["m.gguf"]),
        (("mmproj-m-f16.gguf", "m-F32.gguf"), ["m-F32.gguf"]),
        (("m-Q4_K_M-f16-output.gguf", "m-f16.gguf"), ["m-f16.gguf"]),
        (
            ("BF16/m-BF16-00002-of-00002.gguf", "BF16/m-BF16-00001-of-00002.gguf", "Q8_0/m-Q8_0-00001-of-00001.gguf"),
            ["BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf"],
        ),
        (("m-bf16.gguf", "m.imatrix", "imatrix.dat", "imatrix_m.gguf"), ["m.imatrix", "imatrix.dat", "imatrix_m.gguf", "m-bf16.gguf"]),
    ],
)
def test_the_sixteen_bit_gguf_is_chosen_with_its_shards(names: tuple[str, ...], expected: list[str]) -> None:
    assert chosen(*names) == expected


def test_a_gguf_file_can_be_named_by_any_shard_or_without_its_folder() -> None:
    names = ("Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf", "m-bf16.gguf")
    assert chosen(*names, gguf_file="m-Q8_0-00002-of-00002.gguf") == list(names[:2])
    assert chosen(*names, gguf_file="Q8_0/m-Q8_0-00001-of-00002.gguf") == list(names[:2])


@pytest.mark.parametrize(
    ("names", "options", "word"),
    [
        (("a-bf16.gguf", "b-bf16.gguf"), {}, "a-bf16.gguf, b-bf16.gguf"),
        (("m-bf16-00001-of-00002.gguf",), {}, "1 of 2 shards"),
        (("m-Q4_K.gguf", "m-Q5_K.gguf"), {}, "m-Q4_K.gguf, m-Q5_K.gguf"),
        (("m-Q4_K.gguf", "imatrix.dat"), {}, "--imatrix-only"),
        (("m-bf16.gguf",), {"gguf_file": "n.gguf"}, "no GGUF file 'n.gguf'"),
        (("m-bf16.gguf",), {"imatrix_only": True}, "no importance matrix"),
        (("model-00001-of-00002.safetensors", "config.json"), {}, "1 of 2 parts"),
        (("README.md",), {}, "neither"),
        (("config.json", "model.safetensors"), {"weight_names": {"../model.safetensors"}}, "'../model.safetensors'"),
        (("config.json", "model.safetensors"), {"weight_names": {"other.safetensors"}}, "'other.safetensors'"),
    ],
)
def test_what_cannot_be_chosen_is_said(names: tuple[str, ...], options: dict[str, Any], word: str) -> None:
    with pytest.raises(RepoFileNotFoundError) as raised:
        chosen(*names, **options)
    assert word in str(raised.value)


def test_pickle_files_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="pickle"):
        chosen("config.json", "pytorch_model-00001-of-00002.bin")


@given(
    st.one_of(st.text(max_size=30), st.lists(st.sampled_from(["..", ".", "", "a", "C:", "\\x", "b.gguf", "~"]), max_size=5).map("/".join))
)
def test_a_plain_name_never_leaves_its_folder(name: str) -> None:
    if is_plain(name):
        root = Path("/cache/snapshots/sha")
        joined = Path(*(part for part in (root / name).parts if part != "."))
        assert joined.is_relative_to(root)
        assert joined != root
        assert ".." not in joined.parts


@pytest.mark.parametrize(
    "name", ["../x.gguf", "/etc/x.gguf", "a/../../x.gguf", "C:\\x.gguf", "C:x.gguf", "a\\b.gguf", "a//b.gguf", "x\0.gguf"]
)
def test_names_that_lead_elsewhere_are_not_looked_at(name: str) -> None:
    with pytest.raises(RepoFileNotFoundError):
        chosen(name)


def test_importance_matrices_are_told_by_their_names() -> None:
    assert all(is_imatrix(name) for name in ("imatrix.dat", "M-imatrix.gguf", "x/M.imatrix", "imatrix_unsloth.gguf_file.dat"))
    assert not any(is_imatrix(name) for name in ("M-bf16.gguf", "imatrix.txt", "calibration.dat"))


# Settings and tokens


def test_the_environment_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path)}
    assert HubSettings.read(home) == HubSettings("https://huggingface.co", tmp_path / "hub", offline=False)
    assert HubSettings.read({**home, "HF_ENDPOINT": "http://x:1/"}).endpoint == "http://x:1"
    assert HubSettings.read({**home, "HF_HUB_CACHE": str(tmp_path / "c")}).cache_folder == tmp_path / "c"
    assert HubSettings.read({"XDG_CACHE_HOME": str(tmp_path)}).cache_folder == tmp_path / "huggingface" / "hub"
    assert HubSettings.read({**home, "HF_HUB_OFFLINE": "1"}).offline


def test_tokens_come_from_the_file_then_the_environment_then_the_login(tmp_path: Path) -> None:
    login = tmp_path / "token"
    environ = {"HF_HOME": str(tmp_path)}
    assert not find_token(environ=environ)
    login.write_text("hf_login\n")
    assert find_token(environ=environ).for_hub() == "hf_login"
    environ |= {"HF_TOKEN": "hf_environment"}
    assert find_token(environ=environ).for_hub() == "hf_environment"
    given_file = tmp_path / "given"
    given_file.write_text("hf_file\n")
    assert find_token(given_file, environ=environ).for_hub() == "hf_file"
    assert find_token(environ={**environ, "HF_TOKEN": "", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}).for_hub() is False


def test_a_token_shows_itself_to_nobody() -> None:
    assert "0123456789" not in f"{SECRET!r} {SECRET} {[SECRET]}"
    with pytest.raises(TypeError):
        pickle.dumps(SECRET)
    with pytest.raises(TypeError):
        json.dumps({"token": SECRET})


@pytest.mark.parametrize("content", [b"", b"two words", b"hf_\xff", b"x" * 5000])
def test_a_file_without_one_token_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    with pytest.raises(TokenInvalidError, match="does not hold one token"):
        find_token(path)


def test_a_token_given_in_place_of_its_file_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TokenInvalidError) as raised:
        find_token(Path("hf_abcdefghij"))
    assert "abcdefghij" not in str(raised.value)
    assert raised.value.__cause__ is None


# Peeking


@pytest.mark.parametrize("name", ["books-llama", "books-moe"])
def test_a_checkpoint_s_structure_is_that_of_the_local_model(hub: HubServer, books_llama_dir: Path, books_moe_dir: Path, name: str) -> None:
    folder = books_llama_dir if name == "books-llama" else books_moe_dir
    hub.add(f"org/{name}", folder)
    report, local = peek(f"org/{name}", token=owner(hub)), inspect(folder)
    assert report.tensors == local.tensors
    assert (report.architecture, report.n_parameters, report.tensor_bytes) == (local.architecture, local.n_parameters, local.tensor_bytes)
    assert report.metadata.items() <= local.metadata.items()
    assert (report.kind, report.is_convertible, report.sha) == ("safetensors", True, hub.repos[f"org/{name}"].sha)
    assert report.base_bytes == local.tensor_bytes


def test_looking_reads_headers_and_keeps_nothing(hub: HubServer, books_llama_dir: Path, tmp_path: Path) -> None:
    hub.add("org/books", books_llama_dir)
    peek("org/books", token=owner(hub))
    assert [asked.range for asked in hub.asked if asked.path.split("?")[0].endswith(".safetensors")] == ["bytes=0-131071"] * 2
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not (tmp_path / "hf" / "hub").exists()


def test_a_server_that_ignores_ranges_is_stopped_early(hub: HubServer, books_llama_dir: Path) -> None:
    hub.add("org/books", books_llama_dir)
    hub.ignores_ranges = True
    assert peek("org/books", token=NOBODY).n_parameters == inspect(books_llama_dir).n_parameters


def safetensors(arrays: dict[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """A checkpoint of zeros."""
    sizes, header, at = {"BF16": 2, "F32": 4, "F8_E4M3": 1}, {}, 0
    for name, (dtype, shape) in arrays.items():
        size = int(np.prod(shape)) * sizes[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def test_shards_are_read_as_the_index_says_and_long_headers_in_full(hub: HubServer) -> None:
    names = [f"model.layers.{number}.mixer.weight" for number in range(3000)]
    parts = {
        "a.safetensors": safetensors(dict.fromkeys(names[:2500], ("BF16", (2, 2)))),
        "b.safetensors": safetensors(dict.fromkeys(names[2500:], ("BF16", (2, 2)))),
    }
    weight_map = {name: "a.safetensors" if number < 2500 else "b.safetensors" for number, name in enumerate(names)}
    index = json.dumps({"weight_map": weight_map}).encode()
    config = json.dumps({"architectures": ["NovelForCausalLM"], "vocab_size": 77}).encode()
    files = {"config.json": config, "model.safetensors.index.json": index, "model.safetensors": b"an older one", **parts}
    hub.add("org/novel", files)
    report = peek("org/novel", token=NOBODY)
    assert sorted(tensor.name for tensor in report.tensors) == sorted(names)
    assert report.n_parameters == 4 * 3000
    assert not report.is_convertible
    assert "'NovelForCausalLM'" in (report.why_not_convertible or "")
    assert report.architecture == "NovelForCausalLM"
    assert {file.name for file in report.files if file.needed} == set(files) - {"model.safetensors"}


def test_a_checkpoint_that_we_cannot_convert_says_why(hub: HubServer) -> None:
    config = json.dumps({"architectures": ["LlamaForCausalLM"]}).encode()
    hub.add("org/fp8", {"config.json": config, "model.safetensors": safetensors({"model.embed_tokens.weight": ("F8_E4M3", (32, 32))})})
    report = peek("org/fp8", token=NOBODY)
    assert not report.is_convertible
    assert "F8_E4M3" in (report.why_not_convertible or "")
    assert report.download_bytes == len(config) + len(hub.repos["org/fp8"].files["model.safetensors"])


def test_a_gguf_repository_shows_the_file_that_would_be_taken(hub: HubServer, books_llama_base: Path, tmp_path: Path) -> None:
    source = open_model(books_llama_base)
    planned = layout(source.metadata, source.tensors, split_max_bytes=8 << 20)
    with GGUFWriter(tmp_path / "m-BF16.gguf", planned) as writer:
        for tensor in source.tensors:
            writer.write(source.raw_rows(tensor.name, 0, tensor.n_rows))
    source.close()
    shards = {path.name: path.read_bytes() for path in sorted(tmp_path.glob("m-BF16-*.gguf"))}
    assert len(shards) > 1
    hub.add("org/books-GGUF", {**shards, "m-Q4_K_M.gguf": b"quantized", "imatrix.dat": b"matrix"}, tags=["license:mit"], card={})
    report, local = peek("org/books-GGUF", token=NOBODY), inspect(books_llama_base)
    assert report.gguf_files == tuple(shards)
    assert report.imatrix_files == ("imatrix.dat",)
    assert report.tensors == local.tensors
    assert (report.kind, report.architecture, report.license) == ("gguf", "llama", "mit")
    assert report.base_bytes == sum(map(len, shards.values()))


@pytest.mark.parametrize(
    ("stated", "tags", "shown"),
    [
        (["mit", None, 3], [], "mit"),
        ({"name": "mit"}, [], None),
        (7, [None, {"a": "b"}, "license:apache-2.0"], "apache-2.0"),
        (None, [5, ["license:mit"]], None),
    ],
)
def test_a_licence_that_is_no_text_is_none(
    stated: object, tags: list[Any], shown: str | None, hub: HubServer, books_llama_base: Path
) -> None:
    hub.add("org/books", {"m.gguf": books_llama_base.read_bytes()}, tags=tags, card={"license": stated})
    assert peek("org/books", token=NOBODY).license == shown


def test_a_gguf_header_may_be_longer_than_the_first_request(hub: HubServer, tmp_path: Path, books_llama_base: Path) -> None:
    from quantailor.records import MetadataValue

    source = open_model(books_llama_base)
    long = MetadataValue("array", tuple(f"word {number}" * 8 for number in range(60_000)), "string")
    with GGUFWriter(tmp_path / "m.gguf", layout({**source.metadata, "tokenizer.ggml.tokens": long}, source.tensors)) as writer:
        for tensor in source.tensors:
            writer.write(source.raw_rows(tensor.name, 0, tensor.n_rows))
    source.close()
    hub.add("org/long", {"m.gguf": (tmp_path / "m.gguf").read_bytes()})
    assert peek("org/long", token=NOBODY).n_parameters == inspect(books_llama_base).n_parameters


def test_a_file_whose_name_says_nothing_is_refused_when_it_is_quantized(hub: HubServer) -> None:
    hub.add("org/plain", {"m.gguf": b"".join(small_file().values())})
    report = peek("org/plain", token=NOBODY)
    assert report.kind == "unknown"
    assert "quantized already" in (report.why_not_convertible or "")
    named = peek("org/plain", token=NOBODY, gguf_file="m.gguf")
    assert (named.kind, named.is_quantized) == ("gguf", True)


def test_a_damaged_gguf_is_named(hub: HubServer) -> None:
    hub.add("org/broken", {"m-bf16.gguf": b"GGUF" + bytes([3, 0, 0, 0]) + b"\xff" * 3000})
    with pytest.raises(HubError) as missing:
        peek("org/gone", token=NOBODY)
    assert missing.value.reason == "not-found"
    from quantailor.errors import ModelFormatError

    with pytest.raises(ModelFormatError, match=r"m-bf16\.gguf of org/broken"):
        peek("org/broken", token=NOBODY)


def test_disk_needs_and_the_cache_are_told(hub: HubServer, books_llama_dir: Path) -> None:
    hub.add("org/books", books_llama_dir)
    report = peek("org/books", token=owner(hub))
    steps = {need.step: need.size_bytes for need in report.disk}
    assert set(steps) == {"download", "convert", "probe", "build", "verify"}
    assert steps["download"] == report.download_bytes == report.size_bytes == sum(file.size_bytes for file in report.files)
    assert report.later_bytes == steps["probe"] + steps["build"] + steps["verify"]
    assert steps["build"] == report.n_parameters * 8.5 // 8
    assert report.free_bytes > 0
    assert not any(file.cached for file in report.files)


def test_listings_of_several_pages_are_read_in_full(hub: HubServer, books_llama_dir: Path) -> None:
    hub.add("org/books", books_llama_dir)
    hub.page_size = 2
    assert len(peek("org/books", token=NOBODY).files) == 5


# Refusals


@pytest.mark.parametrize(
    ("access", "reason", "page"),
    [
        ("not-requested", "not-requested", "/org/gated"),
        ("pending", "pending", "/settings/gated-repos"),
        ("rejected", "rejected", "/org/gated"),
        ("no-permission", "token-permission", "/settings/tokens"),
    ],
)
def test_each_way_of_refusing_a_gated_model_says_where_to_act(
    hub: HubServer, books_llama_dir: Path, access: Access, reason: str, page: str
) -> None:
    hub.add("org/gated", books_llama_dir, gated="manual")
    with pytest.raises(AccessError) as raised:
        peek("org/gated", token=Token(hub.user(access), "HF_TOKEN"))
    error = raised.value
    assert (error.reason, error.link) == (reason, hub.url + page)
    assert hub.url + page in str(error)
    assert peek("org/gated", token=owner(hub)).gated == "manual"


def test_refusals_differ_in_their_texts(hub: HubServer, books_llama_dir: Path) -> None:
    hub.add("org/gated", books_llama_dir, gated="auto")
    kinds: tuple[Access, ...] = ("not-requested", "pending", "rejected", "no-permission")
    tokens = [NOBODY, Token("hf_unknown", "HF_TOKEN"), *(Token(hub.user(kind), "HF_TOKEN") for kind in kinds)]
    texts, reasons = set(), []
    for token in tokens:
        with pytest.raises(HubError) as raised:
            peek("org/gated", token=token)
        texts.add(str(raised.value))
        reasons.append(raised.value.reason)
    assert reasons == ["no-token", "invalid-token", "not-requested", "pending", "rejected", "token-permission"]
    assert len(texts) == len(tokens)


def test_missing_and_private_repositories_look_alike(hub: HubServer, books_llama_dir: Path) -> None:
    hub.add("org/private", books_llama_dir, private=True)
    for repo_id, token in (("org/none", NOBODY), ("org/none", owner(hub)), ("org/private", NOBODY)):
        with pytest.raises(RepoNotFoundError, match="or it is private"):
            peek(repo_id, token=token)
    assert peek("org/private", token=owner(hub)).private


@pytest.mark.parametrize("repo_id", ["a/b/c", "../x", "org/..", "org/a--b", "", "org/na me"])
def test_what_is_no_repository_s_name_is_refused(hub: HubServer, repo_id: str) -> None:
    with pytest.raises(RepoNotFoundError):
        peek(repo_id, token=NOBODY)


def test_a_revision_that_is_not_there_is_named(hub: HubServer, books_llama_dir: Path) -> None:
    repo = hub.add("org/books", books_llama_dir, branches=("main", "v1.0"))
    with pytest.raises(RevisionNotFoundError, match=r"no revision 'v2\.0'"):
        peek("org/books", revision="v2.0", token=NOBODY)
    assert peek("org/books", revision="v1.0", token=NOBODY).sha == repo.sha


def test_a_limited_rate_is_waited_out(hub: HubServer, books_llama_dir: Path) -> None:
    hub.add("org/books", books_llama_dir)
    hub.limited = 2
    assert peek("org/books", token=NOBODY).n_parameters > 0
    assert hub.limited == 0


def test_a_rate_limit_that_lasts_too_long_says_when_to_come_back(hub: HubServer) -> None:
    hub.limited, hub.retry_after = 100, "300"
    with pytest.raises(RateLimitError, match="in 300 s") as raised:
        peek("org/books", token=NOBODY)
    assert raised.value.retry_after_s == 300
    assert "with a token the limit is higher" in str(raised.value)


def test_a_hub_that_fails_or_is_gone_is_named(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.failing = 503
    with pytest.raises(HubUnreachableError, match="status 503"):
        peek("org/books", token=NOBODY)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnreachableError, match="cannot be reached") as raised:
        peek("org/books", token=NOBODY)
    assert raised.value.reason == "no-network"


def test_offline_mode_asks_nobody_and_names_what_is_here(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubOfflineError, match="Unset HF_HUB_OFFLINE"):
        peek("org/books", token=NOBODY)
    kept = tmp_path / "hf" / "hub" / "models--org--books" / "snapshots" / "0123"
    kept.mkdir(parents=True)
    with pytest.raises(HubOfflineError, match=str(kept)):
        peek("org/books", token=NOBODY)
    assert not hub.asked
