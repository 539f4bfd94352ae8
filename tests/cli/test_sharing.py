"""What is handed on: llama-quantize's line run by llama.cpp itself, differences, cards and checks."""

from __future__ import annotations

import hashlib
import itertools
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Command, Workbench, validate
from gguf import GGUFReader

from quantailor import cli
from quantailor.analysis.importance.imatrix import quantizer_importance
from quantailor.analysis.importance.imatrix_file import read_imatrix
from quantailor.app.choosing.comparing import preset_types_of
from quantailor.app.library.opening import model_overview
from quantailor.app.library.projects import open_project
from quantailor.app.library.structure import inspect
from quantailor.app.products.card import is_listed_name
from quantailor.ggml.reference import preset_types, quantize_reference
from quantailor.models.gguf_writer import GGUFWriter, layout
from quantailor.models.opening import open_model
from quantailor.present.words import plural
from quantailor.records import MetadataValue, Strategy, TensorChoice
from quantailor.session import Workspace
from quantailor.strategy import file as strategy_file
from small_base import write_small_base

GOLDEN = Path(__file__).parent.parent / "golden"


def types_of(path: Path) -> dict[str, str]:
    source = open_model(path)
    source.close()
    return {tensor.name: tensor.type_name for tensor in source.tensors}


@pytest.fixture(scope="session")
def homes(books_llama_base: Path, books_moe_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with an importance matrix of each model."""
    home = tmp_path_factory.mktemp("sharing")
    for base, name in ((books_llama_base, "books-llama"), (books_moe_base, "books-moe")):
        words = ("imatrix", base, "--import", GOLDEN / f"imatrix-{name}.gguf", "--home", home)
        assert cli.run([str(word) for word in words]) == 0
    return home


def many_types(base: Path, home: Path, output: Path) -> tuple[Path, dict[str, str]]:
    """A strategy that uses every type there is and leaves one tensor as it is, and the types its file is to have."""
    report = inspect(base)
    choices = [tensor for tensor in report.tensors if len(tensor.available_types) > 1]
    kinds = itertools.cycle(choices[0].available_types)
    kept_name = next(tensor.name for tensor in choices if tensor.role == "attn_k")
    chosen = [TensorChoice(tensor.name, tensor.type_name if tensor.name == kept_name else next(kinds), "") for tensor in choices]
    with Workspace.open(home) as workspace, workspace.model(base) as model:
        matrix = workspace.imatrices.default(model.fingerprint)
        assert matrix is not None
        needy = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"}
        kept = [
            item if item.name in matrix.entries or item.type_name not in needy else TensorChoice(item.name, "Q5_K", "") for item in chosen
        ]
        strategy = Strategy(
            model.fingerprint, report.name, report.architecture, "manual", tuple(kept), inputs={"imatrix": matrix.fingerprint}
        )
    strategy_file.write(strategy, output)
    return output, {tensor.name: tensor.type_name for tensor in report.tensors} | strategy.types


@dataclass
class Arguments:
    """What llama-quantize makes of its arguments (those that we use)."""

    imatrix: Path
    base: Path = Path()
    output: Path = Path()
    preset: str = ""
    overrides: list[tuple[str, str]] = field(default_factory=list)
    embedding: str | None = None
    output_type: str | None = None

    @classmethod
    def of(cls, line: str) -> Arguments:
        """Switches first, then base, output and preset; the file of types word by word, its patterns lower-cased."""
        program, *words = shlex.split(line)
        assert program == "llama-quantize"
        switches: dict[str, str] = {}
        while words[0].startswith("--"):
            name, value, *words = words
            switches[name] = value
        found = cls(Path(switches.pop("--imatrix")), Path(words[0]), Path(words[1]), words[2])
        assert len(words) == 3
        for word in Path(switches.pop("--tensor-type-file")).read_text(encoding="utf-8").split():
            pattern, _, kind = word.partition("=")
            found.overrides.append((pattern.lower(), kind.upper()))
        found.embedding = switches.pop("--token-embedding-type").upper()
        found.output_type = switches.pop("--output-tensor-type").upper()
        assert not switches
        return found

    def run(self, *, switches: bool = True) -> Path:
        """Quantize with llama.cpp."""
        matrix, source = read_imatrix(self.imatrix), open_model(self.base)
        found = {tensor.name: quantizer_importance(matrix, tensor) for tensor in source.tensors}
        source.close()
        return quantize_reference(
            self.base,
            self.output,
            preset=self.preset,
            overrides=self.overrides,
            embedding_type=self.embedding if switches else None,
            output_type=self.output_type if switches else None,
            imatrix={name: vector.reshape(-1) for name, vector in found.items() if vector is not None},
            n_threads=1,
        )


@pytest.mark.tables
@pytest.mark.usefixtures("quantizing_here")
@pytest.mark.slow
@pytest.mark.parametrize("model", ["books_llama_base", "books_moe_base"])
def test_llama_cpp_gives_the_same_types(
    quantailor: Command, request: pytest.FixtureRequest, homes: Path, tmp_path: Path, model: str
) -> None:
    base = request.getfixturevalue(model)
    strategy, expected = many_types(base, homes, tmp_path / "many types.yaml")
    assert len(set(expected.values())) > 20
    words = ("--base", base, "-o", tmp_path / "the types.txt", "--gguf", tmp_path / "out.gguf", "--home", homes)
    exported = quantailor("export", strategy, *words, "--json")
    validate(exported.out)
    written = Arguments.of(exported.result["line"]).run()
    assert types_of(written) == expected
    checked = quantailor("check", written, strategy, "--base", base, "--home", homes, "--json").result
    assert (checked["ok"], checked["carries_strategy"], checked["expected_size_bytes"]) == (True, "none", None)


@pytest.mark.slow
def test_the_line_s_file_has_the_tensors_and_the_file_type_of_our_own(quantailor: Command, workbench: Workbench, tmp_path: Path) -> None:
    strategy, home = tmp_path / "s.yaml", ("--home", workbench.home)
    quantailor("plan", workbench.base, "--bpw", "4.3", "-o", strategy, *home)
    quantailor("build", workbench.base, strategy, "-o", tmp_path / "ours.gguf", *home)
    report = quantailor("export", strategy, "--base", workbench.base, "-o", tmp_path / "types.txt", *home, "--json").result
    theirs = GGUFReader(Arguments.of(report["line"]).run(switches=False))
    ours = GGUFReader(tmp_path / "ours.gguf")
    assert theirs.fields["general.file_type"].contents() == ours.fields["general.file_type"].contents()
    assert [bytes(tensor.data) for tensor in theirs.tensors] == [bytes(tensor.data) for tensor in ours.tensors]


@pytest.mark.slow
def test_our_own_lines_run_too(quantailor: Command, workbench: Workbench, tmp_path: Path) -> None:
    strategy, out = tmp_path / "my s.yaml", tmp_path / "my out.gguf"
    quantailor("plan", workbench.base, "--bpw", "5", "-o", strategy, "--home", workbench.home)
    words = ("--base", workbench.base, "-o", tmp_path / "types.txt", "--gguf", out, "--home", workbench.home)
    lines = quantailor("export", strategy, *words, "--json").result["own_lines"]
    for line in lines[:2]:
        program, *arguments = shlex.split(line)
        assert program == "quantailor"
        assert quantailor(*arguments).code == 0, line
    assert out.exists()
    again = quantailor("export", out, "--base", workbench.base, "-o", tmp_path / "back.yaml", "--format", "yaml", *words[-2:], "--json")
    validate(again.out)
    assert strategy_file.read(tmp_path / "back.yaml").types == strategy_file.read(strategy).types


@pytest.mark.slow
def test_c_plus_plus_reads_hexadecimal_escapes(books_llama_base: Path, tmp_path: Path) -> None:
    name = "blk.1.attn_q.weight"
    pattern = f"^{''.join(f'{chr(92)}x{ord(letter):02x}' for letter in name)}$"
    types = types_of(quantize_reference(books_llama_base, tmp_path / "q.gguf", type_name="Q4_0", overrides=[(pattern, "Q8_0")]))
    assert [found for found, kind in types.items() if kind == "Q8_0"] == [name]


def test_the_text_is_shown_with_the_line_to_copy(quantailor: Command, workbench: Workbench, tmp_path: Path) -> None:
    strategy, text, home = tmp_path / "s.yaml", tmp_path / "types.txt", ("--home", workbench.home)
    quantailor("plan", workbench.base, "--bpw", "4.5", "-o", strategy, *home)
    words = ("export", strategy, "--base", workbench.base, "-o", text, *home)
    shown = quantailor(*words).out
    line = next(line for line in shown.splitlines() if line.startswith("llama-quantize "))
    assert Arguments.of(line).output == tmp_path / "s.gguf"
    assert all(re.fullmatch(r"\^\S+\$=\w+", line) for line in text.read_text().splitlines())
    assert "exists" in quantailor(*words).error_line
    assert "--custom-q '^output" in quantailor(*words, "--format", "ik", "--force").out


def test_a_strategy_of_another_model_is_refused(quantailor: Command, workbench: Workbench, books_moe_base: Path, tmp_path: Path) -> None:
    strategy, home = tmp_path / "s.yaml", ("--home", workbench.home)
    quantailor("plan", workbench.base, "--bpw", "4.5", "-o", strategy, *home)
    for words in (
        ("export", strategy, "--base", books_moe_base, "-o", tmp_path / "types.txt"),
        ("diff", books_moe_base, strategy, "Q4_K_M"),
        ("check", workbench.base, strategy, "--base", books_moe_base),
    ):
        assert "was made for Books Llama" in quantailor(*words, *home).error_line
    assert "carries no strategy" in quantailor("check", workbench.base, workbench.base, "--base", workbench.base, *home).error_line
    assert "is not a file of Books Moe" in quantailor("diff", books_moe_base, workbench.base, "Q4_K_M", *home).error_line
    assert "is not a file of Books Moe" in quantailor("card", workbench.base, "--base", books_moe_base, *home).error_line


# Differences


def test_presets_differ_where_llama_cpp_says(quantailor: Command, books_llama_base: Path, homes: Path) -> None:
    outcome = quantailor("diff", books_llama_base, "q4_k_m", "Q4_K_S", "--home", homes, "--json")
    validate(outcome.out)
    found = outcome.result
    m, s = (preset_types(books_llama_base, name) for name in ("Q4_K_M", "Q4_K_S"))
    assert {row["tensor"]: (row["type_a"], row["type_b"]) for row in found["tensors"]} == {
        name: (m[name], s[name]) for name in m if m[name] != s[name]
    }
    change = sum(row["size_b_bytes"] - row["size_a_bytes"] for row in found["tensors"])
    assert found["b"]["tensor_bytes"] - found["a"]["tensor_bytes"] == change == found["b"]["size_bytes"] - found["a"]["size_bytes"]
    assert sum(row["n_changed"] for row in found["roles"]) == len(found["tensors"])
    assert sum(row["size_b_bytes"] - row["size_a_bytes"] for row in found["roles"]) == change
    assert "nothing is measured" in found["a"]["no_prediction"]


def test_preset_types_by_name(books_llama_base: Path, homes: Path) -> None:
    with Workspace.open(homes) as workspace:
        types = preset_types_of(workspace, books_llama_base, "q4_k_m", imatrix="none")
    assert types == types_of(books_llama_base) | preset_types(books_llama_base, "Q4_K_M")


def test_a_side_must_be_something(quantailor: Command, books_llama_base: Path, homes: Path) -> None:
    assert "Q9_Z is neither a file nor a preset" in quantailor("diff", books_llama_base, "Q4_0", "Q9_Z", "--home", homes).error_line


@pytest.mark.slow
def test_a_built_file_does_not_differ_from_its_strategy(quantailor: Command, probed: Workbench, tmp_path: Path) -> None:
    strategy, out, home = tmp_path / "s.yaml", tmp_path / "out.gguf", ("--home", probed.home)
    plan = quantailor("plan", probed.base, "--bpw", "4.2", "-o", strategy, *home, "--json").result
    quantailor("build", probed.base, strategy, "-o", out, *home)
    same = quantailor("diff", probed.base, strategy, out, *home, "--json").result
    assert same["tensors"] == same["roles"] == []
    assert {key: same["a"][key] for key in ("size_bytes", "kld_nats")} == {key: same["b"][key] for key in ("size_bytes", "kld_nats")}
    assert same["a"]["kld_nats"] == pytest.approx(plan["prediction"]["kld_nats"])
    assert same["b"]["kld_interval_nats"] == pytest.approx(plan["prediction"]["kld_interval_nats"])
    other = quantailor("diff", probed.base, out, "Q8_0", *home, "--json").result
    assert other["b"]["kld_nats"] < other["a"]["kld_nats"]
    assert "No tensor differs" in quantailor("diff", probed.base, strategy, out, *home).out
    shown = quantailor("diff", probed.base, out, "Q8_0", *home).out
    assert "and 18 more; --all shows them" in shown
    assert "blk.7.ffn_up.weight" in quantailor("diff", probed.base, out, "Q8_0", "--all", *home).out


# Checks


@pytest.mark.slow
def test_a_check_tells_types_size_and_checksum(quantailor: Command, workbench: Workbench, tmp_path: Path) -> None:
    strategy, other, out = tmp_path / "s.yaml", tmp_path / "other.yaml", tmp_path / "out.gguf"
    home = ("--base", workbench.base, "--home", workbench.home)
    quantailor("plan", workbench.base, "--bpw", "4.2", "-o", strategy, *home[2:])
    text = strategy.read_text(encoding="utf-8")
    quantailor("build", workbench.base, strategy, "-o", out, *home[2:])
    outcome = quantailor("check", out, strategy, *home, "--json")
    validate(outcome.out)
    found = outcome.result
    assert (outcome.code, found["ok"], found["carries_strategy"]) == (0, True, "this one")
    assert found["size_bytes"] == found["expected_size_bytes"] == out.stat().st_size
    assert [part["sha256"] for part in found["parts"]] == [hashlib.sha256(out.read_bytes()).hexdigest()]

    types = strategy_file.read(strategy).types
    name = "blk.3.ffn_down.weight"
    other.write_text(re.sub(rf"({re.escape(name)}: {{type: )\w+", r"\1Q8_0", text), encoding="utf-8")
    outcome = quantailor("check", out, other, *home, "--json")
    validate(outcome.out)
    assert (outcome.code, outcome.result["ok"], outcome.result["carries_strategy"]) == (1, False, "another")
    assert outcome.result["differences"] == [{"tensor": name, "expected": "Q8_0", "found": types[name]}]
    assert "is not what" in quantailor("check", out, other, *home).error_line


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["100KiB", "300KiB", "1MiB"])
def test_the_size_of_a_split_file_is_exact_too(quantailor: Command, workbench: Workbench, tmp_path: Path, limit: str) -> None:
    strategy, out, home = tmp_path / "s.yaml", tmp_path / "out.gguf", ("--home", workbench.home)
    quantailor("plan", workbench.base, "--bpw", "4.2", "-o", strategy, *home)
    paths = quantailor("build", workbench.base, strategy, "-o", out, "--split-max-size", limit, *home, "--json").result["paths"]
    found = quantailor("check", paths[0], strategy, "--base", workbench.base, *home, "--json").result
    assert found["ok"]
    assert found["expected_size_bytes"] == sum(Path(path).stat().st_size for path in paths)
    assert [part["path"] for part in found["parts"]] == paths
    Path(paths[1]).unlink()
    assert quantailor("check", paths[0], strategy, "--base", workbench.base, *home).error_line


# Cards


def front_matter(text: str) -> Any:
    _, block, rest = text.split("---\n", 2)
    assert rest.startswith("\n# ")
    return yaml.safe_load(block)


def with_metadata(base: Path, output: Path, added: Mapping[str, MetadataValue]) -> Path:
    """A copy of a model that says more of itself."""
    source = open_model(base)
    with GGUFWriter(output, layout({**source.metadata, **added}, source.tensors)) as writer:
        for info in source.tensors:
            writer.write(source.raw_rows(info.name, 0, info.n_rows))
    source.close()
    return output


@pytest.mark.slow
def test_a_card_tells_measured_from_not_measured(quantailor: Command, probed: Workbench, heldout_text: Path, tmp_path: Path) -> None:
    strategy, out, card, home = tmp_path / "s.yaml", tmp_path / "out.gguf", tmp_path / "README.md", ("--home", probed.home)
    quantailor("plan", probed.base, "--bpw", "4.4", "-o", strategy, *home)
    quantailor("build", probed.base, strategy, "-o", out, *home)
    words = ("card", out, "--base", probed.base, "-o", card, *home)
    outcome = quantailor(*words, "--json")
    validate(outcome.out)
    assert outcome.result["verdict"] is None
    before = card.read_text(encoding="utf-8")
    assert before == outcome.result["text"]
    assert "**Perplexity and KL divergence of this file were not measured.**" in before
    assert "- perplexity, and KL divergence from the base" in before.partition("## Not measured")[2]
    assert "Predicted, not measured: a mean KL divergence of" in before
    edited = tmp_path / "edited.yaml"
    edited.write_text(re.sub(r"(token_embd.weight: {type: )\w+", r"\1IQ2_XS", strategy.read_text(encoding="utf-8")), encoding="utf-8")
    assert "token_embd.weight cannot be IQ2_XS" in quantailor("predict", probed.base, edited, *home).error_line

    scored = ("-f", heldout_text, "--chunks", 2, "--n-ctx", 64, "--against", "Q8_0", "--threads", 1, "-o", tmp_path / "verdict")
    verdict = quantailor("verify", out, "--base", probed.base, *scored, *home, "--json").result["verdict"]
    renamed = out.rename(tmp_path / "Books-Llama-4.40bpw-Q4_K_M.gguf")
    after = quantailor("card", renamed, "--base", probed.base, *home).out
    assert verdict["sentence"] in after
    for row in verdict["rows"]:
        statistics = row["statistics"]
        assert f"{statistics['perplexity']['value']:.4f} ± {statistics['perplexity']['se']:.4f}" in after
        if row["kind"] != "base":
            assert f"{statistics['kld_mean']['value']:.5f} ± {statistics['kld_mean']['se']:.5f}" in after
    assert "were not measured" not in after
    assert "- perplexity, and KL divergence" not in after
    assert str(tmp_path) not in after
    assert "exists" in quantailor(*words).error_line


@pytest.mark.slow
def test_a_card_s_front_matter_says_what_the_base_says(quantailor: Command, workbench: Workbench, tmp_path: Path) -> None:
    said = {
        "general.license": MetadataValue("string", "apache-2.0"),
        "general.languages": MetadataValue("array", ("en", "no"), "string"),
        "general.source.repo_url": MetadataValue("string", "https://huggingface.co/some-org/Books-Llama"),
    }
    base, strategy = with_metadata(workbench.base, tmp_path / "base.gguf", said), tmp_path / "s.yaml"
    out, home = tmp_path / "out.gguf", ("--home", workbench.home)
    quantailor("plan", base, "--bpw", "4.4", "-o", strategy, *home)
    quantailor("build", base, strategy, "-o", out, *home)
    result = quantailor("card", out, "--base", base, *home, "--json").result
    found = front_matter(result["text"])
    assert found["base_model"] == "some-org/Books-Llama"
    assert (found["license"], found["language"]) == ("apache-2.0", ["en", "no"])
    assert (found["library_name"], found["pipeline_tag"]) == ("gguf", "text-generation")
    assert {"gguf", "imatrix", "quantailor", "llama"} <= set(found["tags"])
    assert "quantized_by" not in found
    assert not result["name_is_listed"]
    assert re.fullmatch(r"Books-Llama-4\.\d\dbpw-[A-Z0-9_]+\.gguf", result["suggested_name"])
    other = quantailor("card", out, "--base", base, "--base-model", "org/name", *home).out
    assert front_matter(other)["base_model"] == "org/name"
    assert "is not a name on the hub" in quantailor("card", out, "--base", base, "--base-model", "name", *home).error_line
    bare = quantailor("card", out, "--base", workbench.base, *home).out
    assert not {"base_model", "license"} & front_matter(bare).keys()
    shown = quantailor("card", out, "--base", base, "-o", tmp_path / "README.md", *home).out
    assert f"quantailor verify {out} --base {base}" in shown.replace("\n", "")


@pytest.mark.parametrize(
    ("license_said", "languages", "expected"),
    [
        (MetadataValue("uint32", 7), MetadataValue("array", (1, 2), "int32"), (None, None)),
        (MetadataValue("bool", True), MetadataValue("string", "en"), (None, ["en"])),
        (MetadataValue("string", " "), MetadataValue("array", ("", "de"), "string"), (None, ["de"])),
        (MetadataValue("array", ("mit", "bsd"), "string"), MetadataValue("array", (), "string"), (["mit", "bsd"], None)),
        (MetadataValue("string", "mit\n\x1b\udcff"), MetadataValue("string", ""), ("mit", None)),
    ],
)
def test_a_card_repeats_no_licence_or_language_that_is_no_text(
    quantailor: Command, license_said: MetadataValue, languages: MetadataValue, expected: tuple[object, object], tmp_path: Path
) -> None:
    said = {"general.license": license_said, "general.languages": languages, "general.tags": MetadataValue("array", (1,), "int32")}
    base, out, home = (
        with_metadata(write_small_base(tmp_path / "small.gguf"), tmp_path / "base.gguf", said),
        tmp_path / "out.gguf",
        ("--home", tmp_path / "home"),
    )
    assert quantailor("build", base, "Q4_0", "-o", out, "--imatrix", "none", *home).code == 0
    assert quantailor("card", out, "--base", base, "-o", tmp_path / "README.md", *home).code == 0
    found = front_matter((tmp_path / "README.md").read_text(encoding="utf-8"))
    assert (found.get("license"), found.get("language")) == expected
    with Workspace.open(tmp_path / "home") as workspace:
        shown = model_overview(workspace, open_project(workspace, base)).license
    assert shown == (", ".join(expected[0]) if isinstance(expected[0], list) else expected[0])


@pytest.mark.slow
def test_a_preset_s_card_does_not_claim_to_be_ours(quantailor: Command, books_llama_base: Path, homes: Path, tmp_path: Path) -> None:
    file = quantize_reference(books_llama_base, tmp_path / "books-Q4_K_M.gguf", preset="Q4_K_M")
    result = quantailor("card", file, "--base", books_llama_base, "--home", homes, "--json").result
    assert "A program other than Quantailor wrote this file" in result["text"]
    assert "quantailor" not in front_matter(result["text"])["tags"]
    assert "without an importance matrix" in result["text"]
    assert "No KL divergence is predicted: nothing is measured" in result["text"]
    assert result["name_is_listed"]


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("model-Q4_K_M.gguf", True),
        ("model.IQ3_XXS.gguf", True),
        ("model-q8_0-00001-of-00003.gguf", True),
        ("model-Q4_K.gguf", False),
        ("model-4.5bpw.gguf", False),
        ("modelQ8_0.gguf", False),
    ],
)
def test_names_that_the_hub_lists(name: str, listed: bool) -> None:
    assert is_listed_name(name) is listed


# Experts


def test_experts_as_a_table(quantailor: Command, books_moe_base: Path, books_llama_base: Path, homes: Path) -> None:
    outcome = quantailor("experts", books_moe_base, "--home", homes, "--json")
    validate(outcome.out)
    layers = outcome.result["layers"]
    shown = quantailor("experts", books_moe_base, "--home", homes).out
    assert f"{max(layers[0]['shares']) * 100:.1f} %" in shown
    assert f"{plural(sum(len(layer['unseen']) for layer in layers), 'expert')} saw no token" in shown
    assert "is dense" in quantailor("experts", books_llama_base, "--home", homes).error_line
