"""The connection to a scheduler of Dask, or to a cluster on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import os
import queue
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self

from quantailor.cluster.arithmetic import arithmetic
from quantailor.cluster.crew import ClusterCrew, Listeners, Member
from quantailor.cluster.places import Places, packed
from quantailor.cluster.worker import Order
from quantailor.errors import ClusterError
from quantailor.processes.crews import HERE, Crew, Executor, Item, Task, Work

LOCAL = re.compile(r"local:([1-9][0-9]{0,3})")
REMOTE = re.compile(r"(?:tcp|tls)://\S+:[0-9]+")
CONNECT_SECONDS = 10.0
LOST_SECONDS = 20.0
"""A scheduler that answers nothing for so long is lost."""
_POLL_SECONDS = 0.5
_TLS_SETTINGS = (
    "Set DASK_DISTRIBUTED__COMM__TLS__CA_FILE, DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT and DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY"
    " to PEM files, or the same in Dask's configuration"
)


def check_address(address: str) -> None:
    """Raise ClusterError for a text that names no cluster."""
    if not (LOCAL.fullmatch(address) or REMOTE.fullmatch(address)):
        raise ClusterError(
            f"--cluster {address!r} names no cluster",
            remedy="Give local:N, or the scheduler's address as tcp://HOST:PORT or tls://HOST:PORT",
        )


@contextmanager
def connected(address: str, places: Places, listeners: Listeners) -> Iterator[Executor]:
    """Whoever works at an address: `local:N` is a cluster of N processes that listens on the loopback interface alone.

    Raises ClusterError where Dask is not installed, or where no scheduler answers.
    """
    check_address(address)
    local = LOCAL.fullmatch(address)
    try:
        import distributed
    except ImportError as error:
        raise ClusterError("Dask is not installed", remedy="pip install 'quantailor[cluster]'") from error
    _check_encryption(address)
    for name in ("distributed", "distributed.client", "distributed.comm", "distributed.core", "distributed.scheduler"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters of it is said by us
    with ExitStack() as stack:
        place = stack.enter_context(_cluster_here(int(local[1]))) if local else address
        try:
            client = distributed.Client(place, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise ClusterError(
                f"no scheduler answers at {address}: {error}", remedy="Start one with `dask scheduler`, or check its address"
            ) from error
        stack.callback(_close, client)
        n_threads = max(1, (os.cpu_count() or 1) // int(local[1])) if local else None
        with DaskConnection(client, address) as connection:
            yield ClusterExecutor(connection, places, listeners, n_threads)


def _check_encryption(address: str) -> None:
    """Raise ClusterError where Dask's own settings of TLS do not fit the address; its client would fail without a word that helps."""
    from distributed.security import Security

    try:
        settings = Security().get_connection_args("client")
    except (OSError, ValueError) as error:
        raise ClusterError(f"Dask's TLS settings cannot be used: {error}", remedy=_TLS_SETTINGS) from error
    is_required, has_certificates = settings["require_encryption"], settings["ssl_context"] is not None
    if is_required and address.startswith("tcp:"):
        raise ClusterError(
            f"Dask's settings require encryption, and {address} has none",
            remedy="Give the scheduler's address as tls://HOST:PORT, or unset distributed.comm.require-encryption",
        )
    if (is_required or address.startswith("tls:")) and not has_certificates:
        raise ClusterError(f"{address} needs certificates, and Dask's settings name none", remedy=_TLS_SETTINGS)


def _close(client: Any) -> None:
    with contextlib.suppress(Exception):  # one that has lost its scheduler has nothing to say good-bye to
        client.close()


@contextmanager
def _cluster_here(n_workers: int) -> Iterator[object]:
    import distributed

    with distributed.LocalCluster(
        n_workers=n_workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address="127.0.0.1:0",
        memory_limit=None,
        silence_logs=logging.CRITICAL,
    ) as cluster:
        yield cluster


class ClusterExecutor:
    """The workers of a cluster. `n_threads` of each, unless work says how many; None for all processors."""

    def __init__(self, connection: DaskConnection, places: Places, listeners: Listeners, n_threads: int | None) -> None:
        self._connection, self._places, self._listeners, self._n_threads = connection, places, listeners, n_threads

    @contextmanager
    def on(self, work: Work[Task, Item]) -> Iterator[Crew[Task, Item]]:
        """The workers that have set up this work, until the block ends; raises as `ClusterCrew.gather` does.

        Files that were made here may be on no worker; what reads them besides the model is then done here.
        """
        if self._n_threads is not None:
            work = work.on_threads(self._n_threads)
        data = packed(work)
        order = Order(hashlib.sha256(data).hexdigest(), data, self._places, arithmetic())
        crew = ClusterCrew(self._connection, work, order, self._listeners)
        try:
            crew.gather()
        except ClusterError as error:
            if len(work.files) == 1:
                raise
            self._listeners.warn(f"this machine goes on alone, because {error.message}")
            with HERE.on(work) as alone:
                yield alone
            return
        try:
            yield crew
        finally:
            crew.release()


class DaskConnection:
    """A client of Dask. Use as a context manager.

    A thread asks the scheduler for its workers, so that whoever waits for answers is never held up by one that is silent.
    """

    def __init__(self, client: Any, address: str) -> None:
        self._client, self.address = client, address
        self.dashboard = str(client.dashboard_link) if client.dashboard_link else None
        self._answers: queue.Queue[tuple[int, object]] = queue.Queue()
        self._futures: dict[int, Any] = {}
        self._numbers = itertools.count()
        self._members: dict[str, Member] = {}
        self._signs: dict[str, tuple[float, float]] = {}
        """Worker -> when the scheduler heard of it by its clock, and when we learned of that."""
        self._seen = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="workers", daemon=True)

    def __enter__(self) -> Self:
        self._ask()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for number in list(self._futures):
            self.drop(number)

    @property
    def is_lost(self) -> bool:
        return self._client.status not in ("running", "connecting") or time.monotonic() - self._seen > LOST_SECONDS

    def members(self) -> dict[str, Member]:
        """The workers that the scheduler named last."""
        return self._members

    def submit(self, address: str, function: Callable[..., object], *arguments: object) -> int:
        """Call a function on one worker, which others cannot do in its place."""
        number = next(self._numbers)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sending large graph")
                future = self._client.submit(function, *arguments, workers=[address], allow_other_workers=False, pure=False)
        except Exception as error:
            self._answers.put((number, ClusterError(f"the connection was lost: {error}")))
            return number
        self._futures[number] = future
        self._client.loop.add_callback(self._fetch, number, future)
        return number

    def answer(self, seconds: float) -> tuple[int, object] | None:
        """What came back next."""
        try:
            number, answer = self._answers.get(timeout=seconds) if seconds else self._answers.get_nowait()
        except queue.Empty:
            return None
        self._futures.pop(number, None)
        return number, answer

    def drop(self, number: int) -> None:
        """Cancel it."""
        future = self._futures.pop(number, None)
        if future is not None:
            with contextlib.suppress(Exception):  # a client that is closed cannot, and need not
                future.cancel()

    async def _fetch(self, number: int, future: Any) -> None:
        """Wait for an answer on the client's own loop: one that never comes holds up no other."""
        try:
            answer = await self._client.gather(future, asynchronous=True)
        except asyncio.CancelledError:
            answer = ClusterError("the connection was lost")
        except Exception as error:
            answer = error
        self._answers.put((number, answer))

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            self._ask()

    def _ask(self) -> None:
        asked = time.monotonic()
        try:
            # Not `scheduler_info`, in which the client itself leaves the workers out now and then.
            workers = self._client.sync(self._client.scheduler.identity, callback_timeout=LOST_SECONDS)["workers"]
        except Exception as error:
            logging.getLogger(__name__).debug("the scheduler does not answer: %s", error)
            return
        for address, found in workers.items():  # clocks of other machines tell nothing but that something was heard
            if address not in self._signs or self._signs[address][0] != found["last_seen"]:
                self._signs[address] = found["last_seen"], asked
        self._members = {
            address: Member(str(found["name"]), str(found["host"]), asked - self._signs[address][1]) for address, found in workers.items()
        }
        self._seen = asked
