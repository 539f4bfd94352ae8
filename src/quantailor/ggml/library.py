"""Finds libggml and libllama through llama-cpp-python, declares the prototypes we use and checks the layouts.

llama-cpp-python ships several copies of each shared library. Opening a second copy would mean a second ggml
with its own state, so every symbol is looked up through the libllama that llama-cpp-python has opened
(`dlsym` searches its dependencies); on Windows, where that search does not exist, through the DLLs beside it.

Struct layouts are ours to declare where llama-cpp-python does not (`ggml_tensor`, `ggml_type_traits`) and
are checked at load against the library: the size of a tensor object, the fields of a known tensor, the
traits of F32 and Q8_0, and the default parameters. A mismatch raises NativeLibraryError instead of reading
foreign memory.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType

from quantailor.errors import NativeLibraryError, TypeUnavailableError
from quantailor.present import words
from quantailor.qtypes import UNTOUCHED, QType
from quantailor.records import TensorInfo

MINIMUM_VERSION = (0, 3, 36)
SPIN_COUNT = "1000"
"""How often a thread looks whether the others are done before it sleeps. By default it is 300,000 times: where another program keeps
a processor busy, threads spin for one that waits for its turn, at every operation of the graph (`benchmarks/busy.py`)."""
NO_CUDA_GRAPHS = "GGML_CUDA_DISABLE_GRAPHS"
"""ggml-cuda records the kernels of a graph and launches them again; it does not see that a weight has changed its type."""
GGML_MAX_DIMS = 4
GGML_MAX_OP_PARAMS = 64
GGML_MAX_SRC = 10
GGML_MAX_NAME = 64
_GGML_OBJECT_SIZE = 32
_INSTALL = "Install it with: pip install 'llama-cpp-python>=0.3.36' (the first build takes some minutes)"


class GgmlTensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h."""


GgmlTensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * GGML_MAX_DIMS),
    ("nb", ctypes.c_size_t * GGML_MAX_DIMS),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * (GGML_MAX_OP_PARAMS // 4)),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(GgmlTensor) * GGML_MAX_SRC),
    ("view_src", ctypes.POINTER(GgmlTensor)),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * GGML_MAX_NAME),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]
TensorPointer = ctypes.POINTER(GgmlTensor)


class GgmlInitParams(ctypes.Structure):
    """`struct ggml_init_params` of ggml.h."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


ToFloat = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class GgmlTypeTraits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ToFloat),
        ("from_float_ref", ctypes.c_void_p),
    )


class GgmlTypeTraitsCpu(ctypes.Structure):
    """`struct ggml_type_traits_cpu` of ggml-cpu.h."""

    _fields_ = (
        ("from_float", ctypes.c_void_p),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    )


# name: (restype, argtypes), beside ggml.h / ggml-backend.h
_PROTOTYPES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    # const struct ggml_type_traits * ggml_get_type_traits(enum ggml_type type)
    "ggml_get_type_traits": (ctypes.POINTER(GgmlTypeTraits), (ctypes.c_int,)),
    # bool ggml_quantize_requires_imatrix(enum ggml_type type)
    "ggml_quantize_requires_imatrix": (ctypes.c_bool, (ctypes.c_int,)),
    # void ggml_quantize_init(enum ggml_type type)
    "ggml_quantize_init": (None, (ctypes.c_int,)),
    # size_t ggml_quantize_chunk(type, const float * src, void * dst, int64 start, nrows, n_per_row, const float * imatrix)
    "ggml_quantize_chunk": (
        ctypes.c_size_t,
        (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *(ctypes.c_int64,) * 3, ctypes.c_void_p),
    ),
    # bool ggml_validate_row_data(enum ggml_type type, const void * data, size_t nbytes)
    "ggml_validate_row_data": (ctypes.c_bool, (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)),
    # size_t ggml_tensor_overhead(void)
    "ggml_tensor_overhead": (ctypes.c_size_t, ()),
    # struct ggml_context * ggml_init(struct ggml_init_params params)
    "ggml_init": (ctypes.c_void_p, (GgmlInitParams,)),
    # void ggml_free(struct ggml_context * ctx)
    "ggml_free": (None, (ctypes.c_void_p,)),
    # struct ggml_tensor * ggml_new_tensor_3d(ctx, enum ggml_type type, int64 ne0, ne1, ne2)
    "ggml_new_tensor_3d": (TensorPointer, (ctypes.c_void_p, ctypes.c_int, *(ctypes.c_int64,) * 3)),
    # struct ggml_tensor * ggml_set_name(struct ggml_tensor * tensor, const char * name)
    "ggml_set_name": (TensorPointer, (TensorPointer, ctypes.c_char_p)),
    # size_t ggml_nbytes(const struct ggml_tensor * tensor)
    "ggml_nbytes": (ctypes.c_size_t, (TensorPointer,)),
    # const char * ggml_op_name(enum ggml_op op)
    "ggml_op_name": (ctypes.c_char_p, (ctypes.c_int,)),
    # void ggml_backend_tensor_set(struct ggml_tensor * tensor, const void * data, size_t offset, size_t size)
    "ggml_backend_tensor_set": (None, (TensorPointer, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)),
    # void ggml_backend_tensor_get(const struct ggml_tensor * tensor, void * data, size_t offset, size_t size)
    "ggml_backend_tensor_get": (None, (TensorPointer, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)),
    # bool ggml_backend_buffer_is_host(ggml_backend_buffer_t buffer)
    "ggml_backend_buffer_is_host": (ctypes.c_bool, (ctypes.c_void_p,)),
}


@dataclass(frozen=True, slots=True)
class Library:
    """The opened libraries: `llama` is llama-cpp-python's low-level module, `ggml` resolves ggml symbols."""

    llama: ModuleType
    ggml: ctypes.CDLL
    version: str
    type_count: int


@functools.cache
def load() -> Library:
    """Open and check the libraries, once per process.

    Raises:
        NativeLibraryError: llama-cpp-python is missing, too old, or its structs differ from ours.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    os.environ.setdefault(NO_CUDA_GRAPHS, "1")
    try:
        package = importlib.import_module("llama_cpp")
        llama = importlib.import_module("llama_cpp.llama_cpp")
    except (ImportError, OSError, RuntimeError) as error:
        raise NativeLibraryError(f"llama-cpp-python cannot be loaded: {error}", remedy=_INSTALL) from error
    version = str(package.__version__)
    if _version_tuple(version) < MINIMUM_VERSION:
        raise NativeLibraryError(f"llama-cpp-python {version} is too old", remedy=_INSTALL)
    ggml = _declare(_open_ggml(llama), version)
    library = Library(llama, ggml, version, int(llama.llama_model_quantize_default_params().output_tensor_type))
    _check_layouts(library)
    return library


def _version_tuple(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def _open_ggml(llama: ModuleType) -> ctypes.CDLL:
    path = Path(llama._lib._name)
    if platform.system() != "Windows":
        return ctypes.CDLL(str(path))
    return ctypes.CDLL(str(path.with_name("ggml-base.dll")))


def _declare(ggml: ctypes.CDLL, version: str) -> ctypes.CDLL:
    for name, (restype, argtypes) in _PROTOTYPES.items():
        try:
            function = getattr(ggml, name)
        except AttributeError as error:
            raise _unsupported(version, f"it has no {name}") from error
        function.restype, function.argtypes = restype, argtypes
    return ggml


def _unsupported(version: str, why: str) -> NativeLibraryError:
    return NativeLibraryError(f"llama-cpp-python {version} is not supported: {why}", remedy="Install llama-cpp-python 0.3.36")


def _check_layouts(library: Library) -> None:
    ggml, version = library.ggml, library.version
    overhead = ggml.ggml_tensor_overhead()
    if overhead != ctypes.sizeof(GgmlTensor) + _GGML_OBJECT_SIZE:
        raise _unsupported(version, f"a ggml tensor takes {overhead} bytes")
    if not 40 <= library.type_count <= 256:
        raise _unsupported(version, f"it reports {library.type_count} types")
    for index, expected in ((0, ("f32", 1, 4)), (8, ("q8_0", 32, 34)), (12, ("q4_K", 256, 144))):
        traits = ggml.ggml_get_type_traits(index).contents
        if (traits.type_name.decode(), traits.blck_size, traits.type_size) != expected:
            raise _unsupported(version, f"ggml type {index} is not {expected[0]}")
    _check_known_tensor(library)
    context = library.llama.llama_context_default_params()
    if (context.n_ctx, context.n_batch, context.n_ubatch) != (512, 2048, 512):
        raise _unsupported(version, "the context parameters are laid out differently")


def _check_known_tensor(library: Library) -> None:
    ggml = library.ggml
    context = ggml.ggml_init(GgmlInitParams(16 * ggml.ggml_tensor_overhead(), None, True))
    try:
        tensor = ggml.ggml_set_name(ggml.ggml_new_tensor_3d(context, 8, 64, 3, 2), b"known").contents
        seen = (tensor.type, tuple(tensor.ne), tuple(tensor.nb), tensor.name, bool(tensor.data), bool(tensor.src[0]))
        if seen != (8, (64, 3, 2, 1), (34, 68, 204, 408), b"known", False, False):
            raise _unsupported(library.version, "ggml tensors are laid out differently")
    finally:
        ggml.ggml_free(context)


@functools.cache
def engine(*, on_gpu: bool = False, over_rpc: bool = False) -> str:
    """Which llama.cpp this is, and whether a GPU or an RPC server takes part, for what must not be mixed with the results of another.

    Nothing is loaded to know it.
    """
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        version = "of unknown version"
    return f"llama-cpp-python {version}{' with RPC' if over_rpc else ' with GPU' if on_gpu else ''}"


def engines() -> tuple[str, str, str]:
    """Whose results count today."""
    return engine(), engine(on_gpu=True), engine(over_rpc=True)


@functools.cache
def processor() -> str:
    """The instructions that llama.cpp's kernels on the processor use, as it lists them."""
    return " ".join(load().llama.llama_print_system_info().decode(errors="replace").split())


@functools.cache
def types() -> Mapping[str, QType]:
    """Every type that ggml can both write and read back, by name, in ggml's order; F32 included.

    A type is in the list when it has a block layout and a dequantizer: `ggml_quantize_chunk` aborts the
    process for the others (Q8_1, Q8_K and the integers are formats of activations and indices).
    """
    ggml = load().ggml
    qtypes: dict[str, QType] = {}
    for index in range(load().type_count):
        traits = ggml.ggml_get_type_traits(index).contents
        name = traits.type_name.decode().upper() if traits.type_name else ""
        if traits.blck_size > 0 and (traits.to_float or name == "F32"):
            aborts = bool(ggml.ggml_quantize_requires_imatrix(index))
            quantized = bool(traits.is_quantized)
            block = _activation_block(ggml, index) if quantized else 1
            qtypes[name] = QType(index, name, traits.blck_size, traits.type_size, quantized, aborts, block)
    return MappingProxyType(qtypes)


@functools.cache
def stored_types() -> Mapping[str, QType]:
    """Every type that a tensor may be stored in, by name: those of `types`, and those that only pass through (`UNTOUCHED`)."""
    ggml = load().ggml
    names = {name.lower(): name for name in UNTOUCHED}
    qtypes = dict(types())
    for index in range(load().type_count):
        traits = ggml.ggml_get_type_traits(index).contents
        name = names.get((traits.type_name or b"").decode())
        if name is not None:
            qtypes[name] = QType(index, name, traits.blck_size, traits.type_size, is_quantized=False)
    return MappingProxyType(qtypes)


def quantized_types(tensors: Iterable[TensorInfo]) -> list[str]:
    """The quantized types among those of these tensors, by name; types that ggml does not know count as none."""
    names = {tensor.type_name for tensor in tensors}
    return sorted(name for name, qtype in types().items() if name in names and qtype.is_quantized)


def type_name(number: int) -> str | None:
    """What ggml calls the type of this number, whether it can be read or not; None where ggml has none, or has given it up."""
    if not 0 <= number < load().type_count:
        return None
    traits = load().ggml.ggml_get_type_traits(number).contents
    return traits.type_name.decode().upper() if traits.type_name and traits.blck_size > 0 else None


def type_named(name: str) -> QType:
    """The type of this name, however its letters are written. Raises TypeUnavailableError where ggml has none."""
    try:
        return types()[name.upper()]
    except KeyError:
        raise TypeUnavailableError(f"there is no type {name!r}", remedy=words.nearest(name, types())) from None


def stored_type(name: str) -> QType:
    """The type of this name among all that a file can hold. Raises TypeUnavailableError where ggml has none."""
    return stored_types().get(name) or type_named(name)


def _activation_block(ggml: ctypes.CDLL, index: int) -> int:
    """Block size of the type that the CPU kernel rounds inputs to; 256 where this build does not say."""
    try:
        function = ggml.ggml_get_type_traits_cpu  # const struct ggml_type_traits_cpu * (enum ggml_type type)
    except AttributeError:
        return 256
    function.restype, function.argtypes = ctypes.POINTER(GgmlTypeTraitsCpu), (ctypes.c_int,)
    return int(ggml.ggml_get_type_traits(function(index).contents.vec_dot_type).contents.blck_size) or 256


@functools.cache
def presets() -> Mapping[str, int]:
    """llama.cpp's quantization presets by name ("Q4_K_M") with their `llama_ftype`, as the bindings list them."""
    llama = load().llama
    prefix = "LLAMA_FTYPE_MOSTLY_"
    return MappingProxyType({name.removeprefix(prefix): int(getattr(llama, name)) for name in dir(llama) if name.startswith(prefix)})
