"""RPC servers that fall silent while llama.cpp waits for them, for ever if nobody looked.

A thread looks at the connections that llama.cpp has. Where one of our threads has stood in a call on one of them, and no byte went either
way, for longer than servers are given, the connection is shut down: llama.cpp then ends as it does where a server is lost. Servers of
machines that are gone are found sooner, by TCP's own keep-alive. Linux alone tells all of this; elsewhere llama.cpp waits.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from quantailor.errors import OptionError

PATIENCE_SECONDS = 600.0
PATIENCE_TIMES = 10.0
"""So many times the longest silence that ended in an answer, where that is more: a server that is slow is not lost."""
PATIENCE_VARIABLE = "QUANTAILOR_RPC_PATIENCE_SECONDS"
_LOOK_SECONDS = 1.0
_IDLE_SECONDS, _INTERVAL_SECONDS, _N_QUESTIONS = 20, 10, 4
"""Without a byte for so long a machine is asked whether it is there, so often and so many times."""
_OWN = Path("/proc/self")
_TCP_INFO_BYTES, _BYTES_ACKED_AT = 136, 120
"""Linux's tcp_info as far as its two counters of bytes: acknowledged, and received behind it."""

Address = tuple[str, int]


def patience_seconds() -> float:
    """How long a server may be silent. Raises OptionError where the environment says no number of seconds."""
    text = os.environ.get(PATIENCE_VARIABLE, "")
    try:
        seconds = float(text) if text else PATIENCE_SECONDS
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds < float("inf"):
        raise OptionError(f"{PATIENCE_VARIABLE} is {text!r}", remedy="Give seconds, 1 or more")
    return seconds


@dataclass(slots=True)
class _Silence:
    """Of one connection."""

    n_bytes: int
    since: float


class Watch:
    """What is known of the silence of some servers, HOST:PORT, of which there may be more later."""

    def __init__(self, servers: Collection[str], patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._servers, self._patience, self._clock = servers, patience, clock
        self._addresses: dict[str, frozenset[Address]] = {}
        self._silent: dict[tuple[str, int], _Silence] = {}
        """By server and our own port."""
        self._longest = 0.0
        self.given_up: dict[str, float] = {}
        """Servers that were silent for too long, with the seconds that they were given."""

    def follow(self) -> None:
        """Look from now on, in a thread that ends with the process."""
        if _OWN.joinpath("fd").is_dir():
            threading.Thread(target=self._look_for_ever, name="silent RPC servers", daemon=True).start()

    def _look_for_ever(self) -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Look once, and shut connections down that have been silent for too long."""
        now, before, self._silent = self._clock(), self._silent, {}
        for descriptor, server, line in _connections(self._named()):
            with closing(line):
                _keep_alive(line)
                if _is_waited_for(descriptor):
                    key, n_bytes = (server, int(line.getsockname()[1])), _n_bytes(line)
                    known = before.get(key)
                    self._silent[key] = known if known is not None and known.n_bytes == n_bytes else _Silence(n_bytes, now)
                    self._end(line, server, now - self._silent[key].since)
        ended = (known.since for key, known in before.items() if self._silent.get(key) is not known)
        self._longest = max(self._longest, *(now - since for since in ended), 0.0)

    def _end(self, line: socket.socket, server: str, silent_seconds: float) -> None:
        """Shut it down, where that is too long."""
        patience = max(self._patience, PATIENCE_TIMES * self._longest)
        if silent_seconds >= patience:
            self.given_up[server] = patience
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def _named(self) -> dict[Address, str]:
        """The servers by the addresses that their names stand for."""
        for server in tuple(self._servers):
            if not self._addresses.get(server):
                self._addresses[server] = _resolved(server)
        return {address: server for server, addresses in self._addresses.items() for address in addresses}


def _resolved(server: str) -> frozenset[Address]:
    host, _, port = server.partition(":")
    try:
        found = socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return frozenset()
    return frozenset((str(address[0]), int(address[1])) for *_, address in found)


def _connections(servers: Mapping[Address, str]) -> Iterator[tuple[int, str, socket.socket]]:
    """Our connections to these servers: the descriptor, the server, and a duplicate to close."""
    for place in list(_OWN.joinpath("fd").iterdir()):
        try:
            if not str(place.readlink()).startswith("socket:"):
                continue
            line = socket.socket(fileno=os.dup(int(place.name)))
        except OSError:  # closed meanwhile
            continue
        try:
            server = servers.get(line.getpeername()[:2]) if line.family == socket.AF_INET else None
        except OSError:  # not connected
            server = None
        if server is None:
            line.close()
        else:
            yield int(place.name), server, line


def _keep_alive(line: socket.socket) -> None:
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_SECONDS)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL_SECONDS)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _N_QUESTIONS)


def _is_waited_for(descriptor: int) -> bool:
    """Whether a thread of ours stands in a system call on it."""
    for task in list(_OWN.joinpath("task").iterdir()):
        with contextlib.suppress(OSError):
            words = (task / "syscall").read_text(encoding="ascii").split()
            if len(words) > 1 and int(words[0]) >= 0 and int(words[1], 16) == descriptor:
                return True
    return False


def _n_bytes(line: socket.socket) -> int:
    """Bytes that went either way: acknowledged, and received."""
    said = line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    return sum(struct.unpack_from("=QQ", said.ljust(_TCP_INFO_BYTES, b"\0"), _BYTES_ACKED_AT))
