"""Files of covariances: read back as written, exact enough to round with, and refused in one line where something is wrong."""

from __future__ import annotations

import copy
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from covariance_files import products, write

from quantailor.analysis.corpus import chunks, load_corpus
from quantailor.analysis.covariances.calibrating import compute_calibration
from quantailor.analysis.covariances.capture import Calibration
from quantailor.analysis.covariances.covariance_file import CovarianceFile
from quantailor.analysis.covariances.covariances import InputCovariance
from quantailor.analysis.rounding.compensation import round_rows
from quantailor.analysis.rounding.metric import Metric
from quantailor.errors import CovarianceError, QuantailorError
from quantailor.ggml import codec, library
from quantailor.ggml.observing import Activation
from quantailor.ggml.runtime import LoadedModel
from quantailor.models.opening import open_model
from quantailor.numerics import Floats
from quantailor.records import MetadataValue, TensorInfo

UP = TensorInfo("blk.0.ffn_up.weight", (8, 6), "F16", 96)
EXPERTS = TensorInfo("blk.0.ffn_up_exps.weight", (3, 8, 6), "F16", 288)
WIDE = TensorInfo("blk.0.ffn_down.weight", (8, 300), "F16", 4800)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write(tmp_path / "whole.gguf", {UP.name: products(1, 6), EXPERTS.name: products(4, 6, 1), WIDE.name: products(1, 300, 2)})


def matrix(file: CovarianceFile, tensor: TensorInfo, index: int = 0) -> Floats:
    found = file.of(tensor, index)
    assert found is not None
    return found.matrix


def test_what_is_written_is_read_back(whole: Path) -> None:
    with CovarianceFile(whole) as file:
        for tensor, expected in ((UP, products(1, 6)[0]), (WIDE, products(1, 300, 2)[0])):
            found, scale = matrix(file, tensor), np.sqrt(np.diagonal(expected))
            assert np.array_equal(np.diagonal(found), np.diagonal(expected))
            np.testing.assert_allclose(found / np.outer(scale, scale), expected / np.outer(scale, scale), atol=2**-12 + 2**-15)
        assert (file.description.datasets, file.description.chunk_count, file.description.chunk_size) == (("text.txt",), 2, 64)
        assert file.of(TensorInfo("token_embd.weight", (9, 6), "F16", 108)) is None
        assert {file.key_of(EXPERTS, index) for index in range(3)} == {f"{EXPERTS.name}#{index}" for index in range(3)}
        again = copy.copy(file)
        assert np.array_equal(matrix(again, EXPERTS, 1), matrix(file, EXPERTS, 1))


def test_the_fingerprint_is_that_of_all_figures(whole: Path, tmp_path: Path) -> None:
    def fingerprint(seed: int, model: str = "m" * 64) -> str:
        path = write(tmp_path / "other.gguf", {UP.name: products(1, 6, seed)}, model=model)
        with CovarianceFile(path) as file:
            return file.fingerprint

    assert fingerprint(1) == fingerprint(1)
    assert len({fingerprint(1), fingerprint(2), fingerprint(1, "n" * 64)}) == 3


def test_inputs_that_are_nearly_the_same_stay_positive(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((4000, 1)) * np.linspace(1, 300, 64) + 1e-3 * rng.standard_normal((4000, 64))
    write(tmp_path / "same.gguf", {"x": [(x.T @ x / 4000).astype(np.float32)]})
    with CovarianceFile(tmp_path / "same.gguf") as file:
        found = matrix(file, TensorInfo("x", (8, 64), "F16", 1024))
    scale = np.sqrt(np.diagonal(found))
    assert np.linalg.eigvalsh((found / np.outer(scale, scale)).astype(np.float64))[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["blk.2.attn_q.weight", "blk.2.ffn_down.weight", "output.weight"])
def test_rounding_is_as_from_float32(name: str, books_llama_base: Path, calibration_text: Path, tmp_path: Path) -> None:
    tokens = chunks(load_corpus(books_llama_base, calibration_text), 512, limit=4)
    run = Calibration(books_llama_base, "m" * 64, tmp_path / "covariances.gguf", names=frozenset([name]), n_threads=1)
    compute_calibration(run, tokens)
    exact = np.zeros((1, 1))

    def see(activation: Activation) -> None:
        nonlocal exact
        if activation.name == name:
            x = activation.x[:, 0].astype(np.float64)
            exact = exact + x.T @ x

    with LoadedModel(books_llama_base, n_ctx=512, n_threads=1, capture=see) as model:
        for chunk in tokens:
            model.decode(chunk)
    with closing(open_model(books_llama_base)) as source:
        tensor, rows = source.tensor(name), source.rows(name, 0, 256)
    with CovarianceFile(tmp_path / "covariances.gguf") as file:
        stored = file.of(tensor)
    assert stored is not None
    plainly = Metric(InputCovariance("exact", (exact / tokens.size).astype(np.float32), tokens.size))
    ours, qtype = Metric(stored), library.types()["Q4_0"]
    exactly, rounded = (round_rows(rows, qtype, metric) for metric in (plainly, ours))
    errors = [plainly.output_errors(codec.dequantize(data, qtype, tensor.n_cols) - rows).sum() for data in (exactly, rounded)]
    judged = ours.output_errors(codec.dequantize(exactly, qtype, tensor.n_cols) - rows).sum()
    assert errors[1] == pytest.approx(errors[0], rel=15e-3)
    assert judged == pytest.approx(errors[0], rel=2e-3)
    assert (exactly == rounded).mean() > 0.85


# Damage


@pytest.mark.parametrize("content", [b"", b"\0", b"GGUF", b"\xff" * 64])
def test_files_that_hold_no_covariances(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken").write_bytes(content)
    with pytest.raises(CovarianceError, match="broken"):
        CovarianceFile(tmp_path / "broken")


def test_a_missing_file_and_a_folder_and_a_model(tmp_path: Path, books_llama_base: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(CovarianceError):
            CovarianceFile(path)
    with pytest.raises(CovarianceError, match=r"holds no covariances.*calibrate"):
        CovarianceFile(books_llama_base)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"version": MetadataValue("uint32", 3)}, "is of version 3, this Quantailor reads version 2. Update Quantailor"),
        (
            {"version": MetadataValue("uint32", 1)},
            "is of version 1, this Quantailor reads version 2. Get an intact copy, or compute it again",
        ),
        ({"model": MetadataValue("string", "n" * 64)}, "its header is not as it was written"),
        ({"fingerprint": MetadataValue("string", "0" * 64)}, "its header is not as it was written"),
        ({"fingerprint": MetadataValue("uint32", 7)}, "no usable quantailor.covariances.fingerprint"),
        ({"counts": None}, "no usable quantailor.covariances.counts"),
        ({"counts": MetadataValue("array", (1, -2, 3), "int64")}, "no usable quantailor.covariances.counts"),
        ({"digests": MetadataValue("array", ("a",), "string")}, "no usable quantailor.covariances.digests"),
        ({"n_cols": MetadataValue("array", (6, 0), "uint32")}, "no usable quantailor.covariances.inputs"),
        ({"tensor_inputs": MetadataValue("array", (0, 9), "uint32")}, "no usable quantailor.covariances.inputs"),
        ({"general.type": MetadataValue("string", "imatrix")}, "it says that it is 'imatrix'"),
    ],
)
def test_headers_that_say_something_else(changed: dict[str, MetadataValue | None], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "odd.gguf", {UP.name: products(1, 6), EXPERTS.name: products(4, 6, 1)}, changed=changed)
    with pytest.raises(CovarianceError) as caught:
        CovarianceFile(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_mean_squares_that_nothing_has(value: float, tmp_path: Path) -> None:
    diagonal = np.ones(6, dtype=np.float32)
    diagonal[2] = value
    path = write(tmp_path / "odd.gguf", {UP.name: products(1, 6)}, diagonals={UP.name: diagonal})
    message = rf"odd\.gguf has the mean square {value:g} for an input of blk\.0\.ffn_up\.weight"
    with CovarianceFile(path) as file, pytest.raises(CovarianceError, match=message):
        file.of(UP)


def test_a_matrix_that_is_not_positive(tmp_path: Path) -> None:
    odd = np.ones((32, 32), dtype=np.float32)
    odd[0, 1:3] = odd[1:3, 0] = -1
    with CovarianceFile(write(tmp_path / "odd.gguf", {"x": [odd]})) as file:
        found = file.of(TensorInfo("x", (8, 32), "F16", 512))
        assert found is not None
        with pytest.raises(CovarianceError, match=r"the covariance of x in .*odd\.gguf is not positive.*calibrate"):
            Metric(found).factor(32)


def test_a_tensor_of_another_width(whole: Path) -> None:
    with CovarianceFile(whole) as file:
        for tensor in (TensorInfo(UP.name, (8, 12), "F16", 192), TensorInfo(EXPERTS.name, (4, 8, 6), "F16", 384)):
            with pytest.raises(CovarianceError, match=r"whole\.gguf has covariances of . x 6 inputs for .*, which needs"):
                file.of(tensor)


def test_every_truncation_is_noticed(whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    for size in [*range(0, 4000, 37), *range(4000, len(data) - 64, 3001), len(data) - 65]:
        (tmp_path / "part").write_bytes(data[:size])
        with pytest.raises(CovarianceError, match="part"):
            CovarianceFile(tmp_path / "part").check()


@pytest.mark.slow
def test_random_damage_is_noticed_and_never_crashes(tmp_path: Path) -> None:
    sample = write(tmp_path / "whole.gguf", {UP.name: products(1, 6), EXPERTS.name: products(4, 6, 1)}).read_bytes()
    with CovarianceFile(tmp_path / "whole.gguf") as file:
        fingerprint, whole = file.fingerprint, matrix(file, EXPERTS, 2)
    rng, path, outcomes = np.random.default_rng(12), tmp_path / "damaged", set()
    for _ in range(4000):
        data = np.frombuffer(sample, dtype=np.uint8).copy()
        places = rng.integers(0, data.size, size=rng.integers(1, 6))
        data[places] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, *rng.integers(0, 256, 3)], size=places.size)
        path.write_bytes(data.tobytes())
        try:
            with CovarianceFile(path) as file:
                file.check()
                # Only padding, or the name of the text.
                assert file.fingerprint == fingerprint
                assert np.array_equal(matrix(file, EXPERTS, 2), whole)
            outcomes.add("read")
        except QuantailorError as error:
            outcomes.add(type(error).__name__)
    assert outcomes == {"read", "CovarianceError"}
