"""Strategy files: the same bytes again, pleasant to edit, and plain words for mistakes."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from strategy_tables import measured, size_at

from quantailor.errors import OutputError, StrategyError, StrategyFormatError
from quantailor.records import Prediction, Strategy, TensorChoice
from quantailor.strategy import choose, file

DOCS = Path(__file__).parent.parent.parent / "docs"
TYPES = ("Q4_K", "Q5_K", "Q6_K")

EXAMPLE = Strategy(
    model_fingerprint="12345678",
    model_name="Books: a #1 model",
    architecture="llama",
    method="optimal",
    tensors=(
        TensorChoice("output.weight", "Q6_K", "pinned by output", 1e-7, pinned=True, knee="Q5_K", price_range=(0.0, math.inf)),
        TensorChoice("blk.0.attn_q.weight", "Q4_K", "Q5_K would save too little, Q3_K would cost more", 12.5, price_range=(1e-9, 2e-5)),
    ),
    target={"size_bytes": 4_500_000_000, "like": "Q4_K_M"},
    parameters={"pins": {"output": "Q6_K"}, "bins": [[10, "Q6_K"], [100.0, "Q4_K"]], "none": None},
    inputs={"imatrix": None, "mode": "sampled"},
    prediction=Prediction(4_400_000_000, 4_399_000_000, 4.53, 12.5, "ranking only", 0.01, (0.008, 0.012)),
)

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
numbers = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
choices = st.builds(
    TensorChoice,
    name=st.text(min_size=1),
    type_name=st.text(min_size=1),
    reason=st.text(),
    damage=numbers,
    pinned=st.booleans(),
    knee=st.none() | st.text(min_size=1),
    price_range=st.none() | st.tuples(numbers, numbers | st.just(math.inf)),
)
strategies = st.builds(
    Strategy,
    model_fingerprint=st.text(min_size=1),
    model_name=st.text(),
    architecture=st.text(),
    method=st.text(min_size=1),
    tensors=st.lists(choices, min_size=1, max_size=4, unique_by=lambda choice: choice.name).map(tuple),
    target=st.dictionaries(st.text(), st.text() | st.integers() | numbers, max_size=2),
    parameters=st.dictionaries(st.text(), plain | st.lists(plain, max_size=3), max_size=3),
    inputs=st.dictionaries(st.text(), st.none() | st.text() | st.integers(), max_size=2),
)


@pytest.mark.parametrize("form", ["yaml", "json"])
@given(strategy=strategies)
def test_what_was_saved_comes_back(form: file.FileFormat, strategy: Strategy) -> None:
    text = file.dumps(strategy, format=form)
    assert file.loads(text) == strategy
    assert file.dumps(file.loads(text), format=form) == text


@pytest.mark.parametrize("name", ["strategy.yaml", "strategy.json"])
def test_save_load_save_is_byte_identical(tmp_path: Path, name: str) -> None:
    tables, _ = measured("books-moe")
    facts = choose.ModelFacts("f" * 64, "books-moe", "llama")
    made = choose.select(tables, model=facts, target={"size_bytes": size_at(tables, 4.5)})
    first = file.write(made, tmp_path / name)
    second = file.write(file.read(first), tmp_path / f"again-{name}")
    assert first.read_bytes() == second.read_bytes()
    assert file.read(first) == made


def test_one_line_per_tensor() -> None:
    text = file.dumps(EXAMPLE)
    assert "  output.weight: {type: Q6_K, damage: 1.0e-07, pinned: true, knee: Q5_K, price_range: [0.0, null]" in text
    assert text.startswith("# A Quantailor strategy")
    assert file.loads(text) == EXAMPLE


def test_the_prediction_can_be_left_out() -> None:
    assert file.loads(file.dumps(EXAMPLE, format="json", include_prediction=False)).prediction is None
    assert "prediction" not in file.dumps(EXAMPLE, include_prediction=False)


def test_compensated_rounding_is_of_the_second_version() -> None:
    assert '"version": 1' in file.dumps(EXAMPLE, format="json")
    for inputs in ({"rounding": "plain", "covariances": "0123456789abcdef"}, {}):
        assert '"version": 1' in file.dumps(replace(EXAMPLE, inputs=inputs), format="json")
    compensated = replace(EXAMPLE, inputs={"rounding": "compensated", "covariances": "0123456789012345"})
    for text in (file.dumps(compensated), file.dumps(compensated, format="json")):
        assert yaml.safe_load(text)["version"] == 2
        assert file.loads(text) == compensated
        assert file.dumps(file.loads(text)) == file.dumps(compensated)


def test_a_short_file_by_hand() -> None:
    text = "model: {fingerprint: abc}\ntensors:\n  output.weight: q6_k\n  blk.0.attn_q.weight: {type: Q4_K, reason: why not}\n"
    strategy = file.loads(text, known_types=TYPES)
    assert strategy.types == {"output.weight": "Q6_K", "blk.0.attn_q.weight": "Q4_K"}
    assert strategy.method == "manual"
    assert strategy.tensors[0].reason == "written by hand"


def test_the_published_schema_is_the_models() -> None:
    published = json.loads((DOCS / "strategy.schema.json").read_text(encoding="utf-8"))
    assert published == file.schema()
    jsonschema.Draft202012Validator.check_schema(published)
    validator = jsonschema.Draft202012Validator(published)
    validator.validate(json.loads(file.dumps(EXAMPLE, format="json")))
    validator.validate(yaml.safe_load(file.dumps(EXAMPLE)))
    validator.validate({"model": {"fingerprint": "a"}, "tensors": {"output.weight": "Q6_K"}})
    assert not validator.is_valid({"model": {"fingerprint": "a"}, "tensors": {}})


HEAD = "model: {fingerprint: abc}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "s is empty"),
        ("[1, 2]", "s is not a strategy: it holds a list"),
        ("tensors: {a: Q4_K}", "line 1: model is missing"),
        ("model: {fingerprint: 3}\ntensors: {a: Q4_K}", "line 1: model.fingerprint is 3. It should be a valid string, or put it in quotes"),
        (f"{HEAD}tensors: {{}}", "line 2: tensors is empty"),
        (f"{HEAD}tensors:\n  a: Q4_K\n  a: Q5_K", "line 4: a is there twice"),
        (f"{HEAD}tensors:\n  a: Q4_K\n  b: Q4_K_M", "line 4: b has the unknown type Q4_K_M. Did you mean Q4_K?"),
        (f"{HEAD}tensors:\n  a: {{type: Q4_K, reson: x}}", "line 3: there is no field tensors.a.reson. Fields here are type, damage"),
        (f"{HEAD}tensors:\n  a: {{damage: 3}}", "line 3: tensors.a.type is missing"),
        (f"{HEAD}tensors:\n  a:\n    type: Q4_K\n    damage: much", "line 5: tensors.a.damage is 'much'. It should be a valid number"),
        (f"{HEAD}tenors: {{a: Q4_K}}", "tensors is missing"),
        (f"version: 3\n{HEAD}tensors: {{a: Q4_K}}", "line 1: the format version is 3. This program reads versions up to 2"),
        (
            f"{HEAD}inputs: {{rounding: dithered}}\ntensors: {{a: Q4_K}}",
            "line 2: There is no rounding 'dithered': it is plain or compensated. Correct it, or update this program",
        ),
        (f"{HEAD}parameters: {{x: .nan}}\ntensors: {{a: Q4_K}}", "line 2: .* is nan"),
        (f"{HEAD}parameters: {{x: 2020-01-01}}\ntensors: {{a: Q4_K}}", "line 2: parameters.x is datetime.date"),
        (f"{HEAD}prediction: &p {{a: 1}}\ntensors: *p", "line 3: a reference to an anchor"),
        ("[" * 5000, "nested deeper than"),
        ("{" * 5000, "line 1: "),
        ('{"a":' * 100_000, "neither YAML nor JSON"),
        ("a: b: c", "line 1: mapping values are not allowed"),
        ('{"a": 1,}', "line 1: "),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ('{"a": NaN}', "NaN is not a number"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: \x00", "neither YAML nor JSON"),
        (f"a: {'9' * 5000}", "neither YAML nor JSON"),
        (f"{HEAD}parameters: {{? [1] : 2}}\ntensors: {{a: Q4_K}}", "unhashable"),
    ],
)
def test_mistakes_are_told_with_their_line(text: str, words: str) -> None:
    with pytest.raises(StrategyFormatError, match=words) as caught:
        file.loads(text, name="s", known_types=TYPES)
    assert "\n" not in str(caught.value)


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_any_text_is_a_strategy_or_a_plain_error(text: str) -> None:
    with pytest.raises(StrategyFormatError):
        file.loads(text)


@given(st.integers(0, 2000), st.text(max_size=3), st.sampled_from(["yaml", "json"]))
def test_a_damaged_file_is_a_strategy_or_a_plain_error(position: int, insert: str, form: file.FileFormat) -> None:
    text = file.dumps(EXAMPLE, format=form)
    position = min(position, len(text))
    with contextlib.suppress(StrategyFormatError):
        file.loads(text[:position] + insert + text[position + 1 :], known_types=TYPES)


def test_a_strategy_that_cannot_be_written_down_is_refused() -> None:
    twice = Strategy("f", "", "", "manual", (TensorChoice("a", "Q4_K", ""), TensorChoice("a", "Q5_K", "")))
    with pytest.raises(StrategyFormatError, match="names a tensor twice"):
        file.dumps(twice)
    with pytest.raises(StrategyFormatError, match="damage"):
        file.dumps(Strategy("f", "", "", "manual", (TensorChoice("a", "Q4_K", "", math.nan),)))


def test_files_are_not_overwritten_unasked(tmp_path: Path) -> None:
    path = file.write(EXAMPLE, tmp_path / "s.yaml")
    with pytest.raises(OutputError, match=r"s\.yaml exists"):
        file.write(EXAMPLE, path)
    assert file.write(EXAMPLE, path, overwrite=True) == path
    assert [each.name for each in tmp_path.iterdir()] == ["s.yaml"]


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(StrategyError, match=r"cannot read .*missing"):
        file.read(tmp_path / "missing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StrategyFormatError, match="not UTF-8 text"):
        file.read(tmp_path / "binary.yaml")
    with pytest.raises(OutputError, match="cannot write"):
        file.write(EXAMPLE, tmp_path / "binary.yaml" / "s.yaml")
