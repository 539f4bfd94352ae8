"""llama.cpp's RPC backend: servers that hold layers of a model, and what to say where one fails.

A server is asked for its version before llama.cpp connects to it, which would end the process where that fails. Where a server is lost
later llama.cpp ends the process all the same; it calls us before, so that whoever waits for this process learns which server it was.
One that falls silent is lost too, see `rpc_silence`.

Servers have no authentication, and serve one client at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import ipaddress
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Sequence
from ctypes import c_char_p, c_int, c_size_t, c_void_p

from quantailor.errors import NativeLibraryError, OptionError, RpcError
from quantailor.ggml import library
from quantailor.ggml.devices import Devices
from quantailor.ggml.remote.rpc_silence import PATIENCE_VARIABLE, Watch, patience_seconds
from quantailor.processes.messages import doing, ending

CONNECT_SECONDS = 10.0
BUSY_SECONDS = 60.0
"""How long a server may take to end with the client before, whose process may have been killed."""
_LOOPBACK = "127.0.0.1"
MAX_SERVERS = 16
"""llama.cpp's own limit."""
NO_AUTHENTICATION = "RPC servers have no authentication and no encryption: anyone who can reach one can use it, and crash it or worse."
_AGAIN = "Start it again; the same command then goes on where it stopped"
_START = "Start it there with `quantailor rpc-server`, and see that no firewall lies between"
_SAME_VERSION = "Install the same llama-cpp-python on both machines"
_HELLO, _CAPABILITIES_BYTES = 14, 24
_HELLO_REQUEST, _HELLO_ANSWER = f"<BQ{_CAPABILITIES_BYTES}x", f"<QBBBx{_CAPABILITIES_BYTES}x"
"""A command, the length of what follows, what the transport can do; the answer's length, the version, what the transport can do."""
_ANSWER_BYTES = struct.calcsize(_HELLO_ANSWER)
_PROCESSOR_TYPE, _GPU_TYPE, _INTEGRATED_TYPE = 0, 1, 2
_EXACT_CUDA = "GGML_CUDA_CUBLAS_COMPUTE_TYPE"
"""ggml-cuda adds up products of F16 weights in F16 unless it says F32."""
_PROTOTYPES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    # ggml_backend_reg_t ggml_backend_rpc_add_server(const char * endpoint)
    "ggml_backend_rpc_add_server": (c_void_p, (c_char_p,)),
    # void ggml_backend_rpc_start_server(endpoint, cache_dir, size_t n_threads, size_t n_devices, ggml_backend_dev_t * devices)
    "ggml_backend_rpc_start_server": (None, (c_char_p, c_char_p, c_size_t, c_size_t, c_void_p)),
    # size_t ggml_backend_reg_dev_count(ggml_backend_reg_t reg)
    "ggml_backend_reg_dev_count": (c_size_t, (c_void_p,)),
    # ggml_backend_dev_t ggml_backend_reg_dev_get(ggml_backend_reg_t reg, size_t index)
    "ggml_backend_reg_dev_get": (c_void_p, (c_void_p, c_size_t)),
    # size_t ggml_backend_dev_count(void)
    "ggml_backend_dev_count": (c_size_t, ()),
    # ggml_backend_dev_t ggml_backend_dev_get(size_t index)
    "ggml_backend_dev_get": (c_void_p, (c_size_t,)),
    # enum ggml_backend_dev_type ggml_backend_dev_type(ggml_backend_dev_t device)
    "ggml_backend_dev_type": (c_int, (c_void_p,)),
    # ggml_abort_callback_t ggml_set_abort_callback(void (*callback)(const char * error_message))
    "ggml_set_abort_callback": (c_void_p, (c_void_p,)),
}


def servers_of(text: str) -> tuple[str, ...]:
    """HOST:PORT,HOST:PORT as a list. Raises OptionError for what is no such list."""
    servers = tuple(filter(None, (part.strip() for part in text.split(","))))
    for server in servers:
        _address(server)
    if not servers or len(servers) > MAX_SERVERS or len(set(servers)) < len(servers):
        raise OptionError(f"--rpc is {text!r}", remedy=f"Name 1 to {MAX_SERVERS} different servers, as host1:50052,host2:50052")
    return servers


def _address(server: str) -> tuple[str, int]:
    host, _, port = server.partition(":")
    if not re.fullmatch(r"[\w.-]+", host) or not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 1 << 16:
        raise OptionError(f"{server!r} is not the address of an RPC server", remedy="Give HOST:PORT, with a name or an IPv4 address")
    return host, int(port)


def check_devices(devices: Devices) -> None:
    """Refuse, before any work, servers that cannot be used; a server that is busy passes.

    Raises:
        OptionError: no layer would be on a server, a server is no HOST:PORT, or the patience with them no number of seconds.
        NativeLibraryError: llama.cpp was built without the RPC backend.
        RpcError: a server cannot be reached, or is something else.
    """
    if not devices.rpc:
        return
    servers_of(",".join(devices.rpc))
    if not devices.is_used:
        raise OptionError("--rpc with -ngl 0 puts no layer on a server", remedy="Add -ngl 99 for all layers, or how many")
    require_rpc()
    patience_seconds()
    for server in devices.rpc:
        protocol(server, patience_seconds=1.0)


def require_rpc() -> None:
    """Raise NativeLibraryError where llama.cpp was built without the RPC backend."""
    opened = library.load()
    if not opened.llama.llama_supports_rpc():
        install = f'CMAKE_ARGS="-DGGML_RPC=ON" pip install --no-cache-dir --force-reinstall --no-deps llama-cpp-python=={opened.version}'
        raise NativeLibraryError(
            f"llama-cpp-python {opened.version} was built without llama.cpp's RPC backend",
            remedy=f"Install it with: {install} (beside -DGGML_RPC=ON give the options that you built it with before)",
        )


def protocol(server: str, *, patience_seconds: float) -> str | None:
    """The version of llama.cpp's protocol that a server speaks; None where it has another client for so long.

    Raises:
        RpcError: it cannot be reached, or is no RPC server.
    """
    try:
        line = socket.create_connection(_address(server), CONNECT_SECONDS)
    except OSError as error:
        raise RpcError(f"the RPC server {server} cannot be reached: {error.strerror or error}", remedy=_START) from error
    answer, last_moment = b"", time.monotonic() + patience_seconds
    with line, contextlib.suppress(ConnectionError):
        try:
            line.settimeout(patience_seconds)
            line.sendall(struct.pack(_HELLO_REQUEST, _HELLO, _CAPABILITIES_BYTES))
            while len(answer) < _ANSWER_BYTES:
                line.settimeout(max(1e-3, last_moment - time.monotonic()))
                more = line.recv(_ANSWER_BYTES - len(answer))
                if not more:
                    break
                answer += more
        except TimeoutError:
            return None
    if len(answer) != _ANSWER_BYTES or struct.unpack(_HELLO_ANSWER, answer)[0] != _ANSWER_BYTES - 8:
        said = f"{server} does not answer as an RPC server of this llama.cpp: it is something else, or another version"
        raise RpcError(said, remedy=_SAME_VERSION)
    return ".".join(map(str, struct.unpack(_HELLO_ANSWER, answer)[1:]))


def connected(devices: Devices) -> ctypes.Array[c_void_p] | None:
    """What `llama_model_params.devices` is to be: the servers' devices, then the GPUs here; None where llama.cpp decides.

    Raises:
        NativeLibraryError: llama.cpp was built without the RPC backend.
        RpcError: a server cannot be reached, does not answer, serves somebody else, or is of another version.
    """
    return _connected(devices.rpc) if devices.rpc and devices.is_used else None


def _connected(servers: Sequence[str]) -> ctypes.Array[c_void_p]:
    require_rpc()
    _watch()
    ggml, found = _library(), list[int]()
    ggml.ggml_set_abort_callback(_abort_callback())
    for server in servers:
        version = protocol(server, patience_seconds=BUSY_SECONDS)
        if version is None:
            said = f"the RPC server {server} does not answer"
            raise RpcError(said, remedy="It serves one client at a time: wait until the other is done, or start it again")
        _used[server] = version
        doing(f"connecting to the RPC server {server}")
        registered = ggml.ggml_backend_rpc_add_server(server.encode())
        n_devices = ggml.ggml_backend_reg_dev_count(registered) if registered else 0
        found += [ggml.ggml_backend_reg_dev_get(registered, index) for index in range(n_devices)]
    found += _own_devices(ggml)
    return (c_void_p * (len(found) + 1))(*found, None)


@functools.cache
def accounted_device() -> ctypes.Array[c_void_p]:
    """The one device that layers are counted on, as `llama_model_params.devices` takes it: the first GPU here.

    Where there is none, this process serves its processor to itself, over loopback, until it ends: nothing is put there.

    Raises:
        NativeLibraryError: there is no GPU, and llama.cpp was built without the RPC backend.
        RpcError: the server does not start.
    """
    if gpus := _own_devices(_library()):
        return (c_void_p * 2)(gpus[0], None)
    require_rpc()
    with socket.socket() as trial:
        trial.bind((_LOOPBACK, 0))
        port = int(trial.getsockname()[1])
    threading.Thread(target=serve, args=(_LOOPBACK, port, 1), daemon=True).start()
    return _connected([_listening(f"{_LOOPBACK}:{port}")])


def _listening(server: str) -> str:
    """The server, once it can be reached. Raises RpcError."""
    last_moment = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            protocol(server, patience_seconds=CONNECT_SECONDS)
        except RpcError:
            if time.monotonic() > last_moment:
                raise
            time.sleep(0.01)
        else:
            return server


def _own_devices(ggml: ctypes.CDLL) -> list[int]:
    """The GPUs of this machine; integrated ones where there are no others."""
    by_type: dict[int, list[int]] = {}
    for index in range(ggml.ggml_backend_dev_count()):
        device = ggml.ggml_backend_dev_get(index)
        by_type.setdefault(ggml.ggml_backend_dev_type(device), []).append(device)
    return by_type.get(_GPU_TYPE) or by_type.get(_INTEGRATED_TYPE) or []


# Losing a server


_used: dict[str, str] = {}
"""The servers that this process has connected to, with the version of the protocol that they speak."""


@functools.cache
def _watch() -> Watch:
    """Looks after them from the first call on, so that none is waited for for ever."""
    watch = Watch(_used, patience_seconds())
    watch.follow()
    return watch


@functools.cache
def _library() -> ctypes.CDLL:
    """ggml with the functions of this module; without the backend's own where it was built without."""
    opened = library.load()
    ggml, has_backend = opened.ggml, bool(opened.llama.llama_supports_rpc())
    for name, (restype, argtypes) in _PROTOTYPES.items():
        if name.startswith("ggml_backend_rpc") and not has_backend:
            continue
        function = getattr(ggml, name)
        function.restype, function.argtypes = restype, argtypes
    return ggml


@functools.cache
def _abort_callback() -> object:
    """`_on_abort` as ggml calls it; it must outlive every call into the library."""
    return ctypes.CFUNCTYPE(None, c_char_p)(_on_abort)


def _on_abort(message: bytes) -> None:
    """ggml calls it in place of printing why it ends the process."""
    os.write(2, message + b"\n")
    text = message.decode(errors="replace")
    if "ggml-rpc" in text:
        ending(_lost(text))


def _lost(message: str) -> RpcError:
    if refused := next((server for server in _used if message.endswith(f"handshake failed for {server}")), None):
        said = f"the RPC server {refused} speaks version {_used[refused]} of llama.cpp's protocol, and this machine another"
        return RpcError(said, remedy=_SAME_VERSION)
    if silent := _watch().given_up:
        said = f"the RPC server {' and '.join(silent)} gave no sign of life for {max(silent.values()):.0f} seconds"
        return RpcError(said, remedy=f"{_AGAIN}. Give a slower server more time with {PATIENCE_VARIABLE}")
    gone = list[str]()
    for server in _used:
        try:
            protocol(server, patience_seconds=1.0)
        except RpcError:
            gone.append(server)
    if not gone:
        said = f"an RPC server ({', '.join(_used)}) ended the connection"
        return RpcError(said, remedy="See what it says; the same command goes on where it stopped")
    return RpcError(f"the RPC server {' and '.join(gone)} was lost", remedy=_AGAIN)


# Being one


def check_serving(host: str, port: int, *, is_trusted: bool) -> None:
    """Refuse an address that cannot be listened on, or that others reach unless `is_trusted`.

    Raises:
        OptionError: the host is no IPv4 address, or not this machine's own.
        RpcError: the port cannot be had.
        NativeLibraryError: llama.cpp was built without the RPC backend.
    """
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError as error:
        raise OptionError(f"--host is {host!r}", remedy="Give an IPv4 address of this machine, such as 127.0.0.1") from error
    if not address.is_loopback and not is_trusted:
        said = f"others may reach {host}. {NO_AUTHENTICATION}"
        raise OptionError(said, remedy="Add --trusted-network where only machines that you trust can reach it, or tunnel through ssh")
    require_rpc()
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            raise RpcError(
                f"cannot listen on {host}:{port}: {error.strerror or error}", remedy="Choose another --port or --host"
            ) from error


def serve(host: str, port: int, n_threads: int | None) -> None:
    """Serve the GPUs of this machine, or else its processor, to one client after the other; ends where the port cannot be had."""
    os.environ.setdefault(_EXACT_CUDA, "f32")
    ggml = _library()
    everything = [ggml.ggml_backend_dev_get(index) for index in range(ggml.ggml_backend_dev_count())]
    devices = _own_devices(ggml) or [device for device in everything if ggml.ggml_backend_dev_type(device) == _PROCESSOR_TYPE]
    pointers = (c_void_p * len(devices))(*devices)
    doing(f"serving at {host}:{port}")
    n_threads = n_threads or os.cpu_count() or 1
    ggml.ggml_backend_rpc_start_server(f"{host}:{port}".encode(), None, n_threads, len(devices), pointers)
