"""A reverse proxy that serves a program on this machine below a path, without websockets."""

from __future__ import annotations

import http.client
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_OF_ONE_CONNECTION = ("transfer-encoding", "content-length", "connection")


@contextmanager
def below(prefix: str, target: int, *, is_silent: bool = False) -> Iterator[int]:
    """Serve what listens on port `target` below `prefix`; yields the proxy's port. A silent one neither names the path nor takes it off."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            if not self.path.startswith(prefix):
                self._answer(404, [], b"")
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            upstream = http.client.HTTPConnection("127.0.0.1", target)
            try:
                headers = dict(self.headers) if is_silent else {**self.headers, "X-Forwarded-Prefix": prefix}
                path = self.path if is_silent else self.path[len(prefix) :] or "/"
                upstream.request(self.command, path, body or None, headers)
                answer = upstream.getresponse()
                self._answer(answer.status, answer.getheaders(), answer.read())
            finally:
                upstream.close()

        def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in _OF_ONE_CONNECTION:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self._pass_on()

        def do_POST(self) -> None:
            self._pass_on()

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                self.close_connection = True

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
