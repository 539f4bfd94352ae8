"""Damages the files of small checkpoints in many ways; each must open and be read, or be refused with one clear line.

Run in its own process, because a crash, a hang or a hunger for memory must fail one test and not all:
`checkpoint_fuzzer.py GROUP SEED FACTOR FOLDER`. Prints, as JSON, how many cases of each target were opened and how many refused.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from mutations import (
    mutate_bytes,
    mutate_card,
    mutate_config,
    mutate_header,
    mutate_index,
    mutate_json,
    mutate_pieces,
    mutate_splits,
    mutate_weights,
    piece,
    split_header,
)
from test_families import SMALL, Arrays, write_small

from quantailor.errors import QuantailorError
from quantailor.ggml import library
from quantailor.models.convert.base import write_base
from quantailor.models.convert.families import FAMILIES
from quantailor.models.huggingface import HuggingFaceSource
from tiny_models import BPE_FIRST_ADDED, TINY, numbers, packed, safetensors_bytes, write_tiny

Mutation = Callable[[bytes, random.Random], bytes]

HANG_S = 20
MEMORY_BYTES = 256 << 20
"""Beside what the libraries take; no checkpoint here is larger than 1 MB."""
LONGEST_MESSAGE = 500
WRITE_EVERY = 97
"""Of so many cases that open, one is written as a base."""
N_PIECES = 48
N_BPE = BPE_FIRST_ADDED + 1
HIDDEN = 64


@dataclass(frozen=True)
class Target:
    """One file of one checkpoint and a way to damage it."""

    model: str
    file: str
    mutate: Mutation
    n_cases: int

    @property
    def name(self) -> str:
        function = self.mutate.func if isinstance(self.mutate, partial) else self.mutate
        return f"{self.model} {self.file} {getattr(function, '__name__', '')}"


# Checkpoints


def _array(name: str, shape: Sequence[int], dtype: str = "BF16") -> tuple[str, Sequence[int], bytes]:
    return dtype, shape, packed(numbers(name, shape), dtype)


def _small(family: str, place: Path, *, more: Arrays | None = None, without: Sequence[str] = (), **config: Any) -> Path:
    """A directory of that family with a small vocabulary, an output matrix and every file that may lie beside it."""
    vocab = N_BPE if SMALL[family].tokenizer == "bpe" else N_PIECES
    outer = {name: _array(name, (vocab, HIDDEN)) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    write_small(family, place, more={**outer, **(more or {})}, without=without, **{"vocab_size": vocab, **config})
    if vocab == N_PIECES:
        special = (
            piece(b"<unk>", kind=2),
            piece(b"<s>", kind=3),
            piece(b"</s>", kind=3),
            *(piece(b"<0x%02X>" % byte, kind=6) for byte in range(8)),
        )
        (place / "tokenizer.model").write_bytes(b"".join((*special, *(piece(b"w%d" % number, -number) for number in range(30)))))
        _write(
            place / "tokenizer_config.json",
            {
                "bos_token": "<s>",
                "eos_token": {"content": "</s>"},
                "add_bos_token": True,
                "added_tokens_decoder": {"45": {"content": "<t>", "special": True}},
            },
        )
    _write(place / "generation_config.json", {"temperature": 0.6, "top_k": 40, "do_sample": True})
    _write(place / "special_tokens_map.json", {"bos_token": "<s>", "eos_token": {"content": "</s>"}})
    _write(place / "added_tokens.json", {"<a>": 46, "<b>": 47} if vocab == N_PIECES else {})
    _write(place / "chat_template.json", {"chat_template": "{{ messages }}"})
    (place / "README.md").write_text("---\nlicense: mit\nlanguage:\n- en\nbase_model: a/B-7B\n---\n", encoding="utf-8")
    return place


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _mixtral(place: Path) -> Path:
    more: Arrays = {}
    for layer in range(2):
        block = f"model.layers.{layer}.block_sparse_moe"
        more[f"{block}.gate.weight"] = _array("gate", (4, HIDDEN))
        for expert in range(4):
            for part, shape in (("w1", (32, HIDDEN)), ("w2", (HIDDEN, 32)), ("w3", (32, HIDDEN))):
                more[f"{block}.experts.{expert}.{part}.weight"] = _array(part, shape)
    without = [f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in range(2) for part in ("gate", "up", "down")]
    return _small(
        "Qwen2ForCausalLM",
        place,
        more=more,
        without=without,
        architectures=["MixtralForCausalLM"],
        intermediate_size=32,
        num_local_experts=4,
        num_experts_per_tok=2,
    )


def _vision(place: Path) -> Path:
    """Gemma 3 as a part of a model that sees."""
    _small("Gemma3ForCausalLM", place)
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    _write(
        place / "config.json",
        {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": config, "vision_config": {"hidden_size": 8}},
    )
    header, body = split_header((place / "model.safetensors").read_bytes())
    arrays: Arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            arrays[f"language_model.{name}"] = (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])
    arrays["vision_tower.x.weight"] = ("BF16", (2, 2), bytes(8))
    (place / "model.safetensors").write_bytes(safetensors_bytes(arrays))
    return place


def _float8(place: Path, *, block: int | None = 32) -> Path:
    """With a scale of each block, or of each matrix."""
    more: Arrays = {}
    for layer in range(2):
        for part, shape in (("q", (64, HIDDEN)), ("k", (32, HIDDEN)), ("o", (HIDDEN, 64))):
            name = f"model.layers.{layer}.self_attn.{part}_proj.weight"
            more[name] = ("F8_E4M3" if layer else "F8_E5M2", shape, np.arange(shape[0] * shape[1], dtype=np.uint8).tobytes())
            more[f"{name}_scale_inv"] = _array(name, (shape[0] // block, shape[1] // block) if block else (1,), "F32")
    quantization: dict[str, Any] = {"quant_method": "fp8", **({"weight_block_size": [block, block]} if block else {})}
    return _small("Qwen2ForCausalLM", place, more=more, architectures=["LlamaForCausalLM"], quantization_config=quantization)


def _float4(place: Path) -> Path:
    """gpt-oss with its experts in MXFP4."""
    more: Arrays = {}
    for layer in range(2):
        for part, rows, n_blocks in (("gate_up", 192, 2), ("down", HIDDEN, 3)):
            name = f"model.layers.{layer}.mlp.experts.{part}_proj"
            more[f"{name}_blocks"] = ("U8", (4, rows, n_blocks, 16), bytes([0x21]) * (4 * rows * n_blocks * 16))
            more[f"{name}_scales"] = ("U8", (4, rows, n_blocks), bytes([127]) * (4 * rows * n_blocks))
    without = [f"model.layers.{layer}.mlp.experts.{part}_proj" for layer in range(2) for part in ("gate_up", "down")]
    return _small("GptOssForCausalLM", place, more=more, without=without, quantization_config={"quant_method": "mxfp4"})


MODELS: Mapping[str, Callable[[Path], Path]] = {
    **{family: partial(_small, family) for family in SMALL},
    **{
        name: partial(_small, "Qwen2ForCausalLM", architectures=[name])
        for name in ("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM")
    },
    "MixtralForCausalLM": _mixtral,
    "Gemma3ForConditionalGeneration": _vision,
    "float8": _float8,
    "float8-single": partial(_float8, block=None),
    "float4": _float4,
}


def write_model(name: str, place: Path) -> Path:
    """One of `MODELS`, or one of the tiny models that are kept in pieces."""
    return write_tiny(name, place) if name in TINY else MODELS[name](place)


# Using what was damaged


def use(folder: Path, *, base: Path | None = None) -> bool:
    """Open a directory, look at all of it and read both ends of every tensor; whether it opened. Refusals must be clear."""
    try:
        source = HuggingFaceSource(folder)
    except QuantailorError as error:
        check_told(str(error), folder)
        return False
    with contextlib.closing(source):
        look_at(source)
        if base is not None:
            write_base(source, base, overwrite=True)
    return True


def look_at(source: HuggingFaceSource) -> None:
    assert source.name
    assert all(name.isprintable() for name in source.left_out)
    for tensor in source.tensors:
        assert tensor.name.isprintable()
        for row in {0, tensor.n_rows - 1}:
            raw = source.raw_rows(tensor.name, row, row + 1)
            assert raw.nbytes * tensor.n_rows == tensor.size_bytes
        assert source.rows(tensor.name, tensor.n_rows - 1, tensor.n_rows).shape == (1, tensor.n_cols)


def check_told(message: str, folder: Path) -> None:
    """One line, short, without control characters, and it names a file or a key."""
    assert message.isprintable(), message
    assert len(message) < LONGEST_MESSAGE, message
    assert any(word in message for word in _words(folder)), message


@cache
def _words(folder: Path) -> frozenset[str]:
    keys = {key for family in FAMILIES.values() for key in family.defaults}
    return frozenset({str(folder), *keys, *(path.name for path in folder.iterdir())})


def cases(target: Target, seed: int, n_cases: int, place: Path) -> Iterator[tuple[int, Path]]:
    """Write each case into a directory of its own target and give its number and place."""
    folder = write_model(target.model, place)
    path = folder / target.file
    intact, rng = path.read_bytes() if path.exists() else b"", random.Random(f"{target.name} {seed}")
    assert use(folder), f"{target.name} does not open as it is"
    for number in range(n_cases):
        path.write_bytes(target.mutate(intact, rng))
        yield number, folder


def run(target: Target, seed: int, factor: float, place: Path) -> tuple[int, int]:
    """How many cases opened and how many were refused."""
    outcomes = [0, 0]
    for number, folder in cases(target, seed, round(target.n_cases * factor), place):
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        try:
            opened = use(folder, base=place / "base.gguf" if outcomes[0] % WRITE_EVERY == 1 else None)
            outcomes[not opened] += 1
        except BaseException:
            kept = place / f"case-{number}"
            kept.write_bytes((folder / target.file).read_bytes())
            print(f"{target.name}, case {number}, kept as {kept}", file=sys.stderr)
            if "--all" not in sys.argv:
                raise
            print("FAIL " + traceback.format_exc().replace("\n", "\n  "), file=sys.stderr)
        finally:
            faulthandler.cancel_dump_traceback_later()
    return outcomes[0], outcomes[1]


# Targets


def _config_target(model: str, n_cases: int) -> Target:
    family = FAMILIES.get(model, FAMILIES["LlamaForCausalLM" if model.startswith("float8") else "GptOssForCausalLM"])
    more = (
        "rope_theta",
        "head_dim",
        "rope_local_base_freq",
        "sliding_window_pattern",
        "n_group",
        "topk_group",
        "scoring_func",
        "partial_rotary_factor",
    )
    keys = (
        *family.defaults,
        *more,
        "bos_token_id",
        "eos_token_id",
        "_name_or_path",
        "tie_word_embeddings",
        "num_key_value_heads",
        "torch_dtype",
    )
    return Target(model, "config.json", partial(mutate_config, keys=keys), n_cases)


LLAMA, BPE_MODEL = "LlamaForCausalLM", "Olmo2ForCausalLM"
GROUPS: Mapping[str, Sequence[Target]] = {
    "configurations of dense families": [
        _config_target(name, 400)
        for name in MODELS
        if name in FAMILIES and "oe" not in name and not name.startswith(("Mixtral", "Deepseek", "GptOss"))
    ],
    "configurations of mixtures": [
        _config_target(name, 400)
        for name in (
            *(name for name in FAMILIES if "oe" in name),
            "MixtralForCausalLM",
            "DeepseekV2ForCausalLM",
            "DeepseekV3ForCausalLM",
            "GptOssForCausalLM",
            "float8",
            "float8-single",
            "float4",
        )
    ],
    "tokenizers": [
        Target(BPE_MODEL, "tokenizer.json", mutate_json, 1200),
        Target(BPE_MODEL, "tokenizer.json", mutate_splits, 700),
        Target("llama3", "tokenizer.json", mutate_json, 500),
        Target("byte-fallback", "tokenizer.json", mutate_json, 500),
        Target(BPE_MODEL, "tokenizer.json", mutate_bytes, 500),
    ],
    "texts beside tokenizers": [
        Target(LLAMA, "tokenizer.model", mutate_bytes, 800),
        Target(LLAMA, "tokenizer.model", mutate_pieces, 800),
        Target(LLAMA, "added_tokens.json", mutate_json, 400),
        Target("Phi3ForCausalLM", "added_tokens.json", mutate_json, 300),
        Target(LLAMA, "tokenizer_config.json", mutate_json, 600),
        Target("Phi3ForCausalLM", "tokenizer_config.json", mutate_json, 400),
        Target("named-tokens", "tokenizer_config.json", mutate_json, 500),
        Target(BPE_MODEL, "merges.txt", mutate_bytes, 100),
        Target(LLAMA, "special_tokens_map.json", mutate_json, 200),
        Target(LLAMA, "generation_config.json", mutate_json, 500),
        Target(LLAMA, "chat_template.json", mutate_json, 200),
        Target(LLAMA, "chat_template.jinja", mutate_bytes, 200),
        Target(LLAMA, "README.md", mutate_bytes, 300),
        Target(LLAMA, "README.md", mutate_card, 500),
    ],
    "headers": [
        *(
            Target(name, "model.safetensors", mutate_header, 350)
            for name in (LLAMA, "float8", "float4", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration", "Phi3ForCausalLM")
        ),
        *(
            Target(name, "model.safetensors", mutate_header, 350)
            for name in ("MixtralForCausalLM", "Qwen3MoeForCausalLM", "DeepseekV3ForCausalLM", "GptOssForCausalLM")
        ),
        Target(LLAMA, "model.safetensors", mutate_bytes, 500),
        *(
            Target(name, "model.safetensors", mutate_weights, 200)
            for name in (LLAMA, "float8", "float4", "Gemma2ForCausalLM", "DeepseekV2ForCausalLM")
        ),
    ],
    "indices": [
        Target("llama3-tied", "model.safetensors.index.json", mutate_index, 1200),
        Target("llama3-tied", "model.safetensors.index.json", mutate_bytes, 500),
    ],
}


def limit_memory() -> None:
    """Let this process take little more than it has."""
    if sys.platform != "linux":
        return
    import resource

    library.types()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)


def main(group: str, seed: int, factor: float, folder: Path) -> None:
    limit_memory()
    outcomes = {}
    for number, target in enumerate(GROUPS[group]):
        place = folder / str(number)
        place.mkdir()
        outcomes[target.name] = run(target, seed, factor, place)
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
