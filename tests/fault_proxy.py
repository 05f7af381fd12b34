"""A proxy that injects faults: ``python -m tests.fault_proxy UPSTREAM [CERTIFICATE KEY]``, a process of its own.

It prints its address. ``POST /faults`` takes a list of faults as JSON, one for each of the next requests of ranges;
``GET /faults`` has those that are left. A fault delays the answer (``seconds``), slows it down
(``bytes_per_second``), replaces it (``status``), cuts it (``cut``, after some bytes), shortens it (``short``, by some
bytes, in its headers too), moves it (``shift``, to other bytes of the file, as its headers say), or sets ``headers``.
"""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import httpx

CHUNK_BYTES = 16 << 10
FAULTS = "/faults"
NOT_COPIED = {"connection", "transfer-encoding", "content-length"}

Fault = dict[str, Any]


class Proxy(ThreadingHTTPServer):
    """Passes requests on to another server."""

    daemon_threads = True

    def __init__(self, upstream: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = urlsplit(upstream).netloc
        self.faults: list[Fault] = []
        self.lock = threading.Lock()

    def take(self) -> Fault:
        """Return the fault of the next request."""
        with self.lock:
            return self.faults.pop(0) if self.faults else {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_GET(self) -> None:
        if self.path == FAULTS:
            self.answer(200, {}, json.dumps(self.server.faults).encode(), {})
        else:
            self.pass_on()

    def do_HEAD(self) -> None:
        self.pass_on()

    def do_PUT(self) -> None:
        self.pass_on()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != FAULTS:
            self.pass_on(body)
            return
        with self.server.lock:
            self.server.faults[:] = json.loads(body)
        self.answer(200, {}, b"", {})

    def pass_on(self, body: bytes | None = None) -> None:
        if body is None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.take() if self.command == "GET" and "Range" in self.headers else {}
        time.sleep(fault.get("seconds", 0))
        if "status" in fault:
            self.answer(fault["status"], {}, b"the proxy refuses", fault)
            return
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            connection.request(self.command, self.path, body, {**self.headers, **self.moved(fault)})
            answer = connection.getresponse()
            self.answer(
                answer.status, dict(answer.getheaders()), answer.read(), fault, answer.getheader("Content-Length")
            )
        finally:
            connection.close()

    def moved(self, fault: Fault) -> dict[str, str]:
        """Return the header that asks for another range, if the fault says so."""
        if "shift" not in fault:
            return {}
        begin, end = self.headers["Range"].removeprefix("bytes=").split("-")
        return {"Range": f"bytes={int(begin) - fault['shift']}-{int(end) - fault['shift']}"}

    def answer(
        self, status: int, headers: dict[str, str], body: bytes, fault: Fault, nbytes: str | None = None
    ) -> None:
        if "short" in fault:
            body = body[: -fault["short"]]
            begin, end, total = headers["Content-Range"].replace("/", "-").replace(" ", "-").split("-")[1:]
            headers["Content-Range"] = f"bytes {begin}-{int(end) - fault['short']}/{total}"
        self.send_response_only(status)
        length = nbytes if self.command == "HEAD" and nbytes is not None else str(len(body))
        for name, value in {**headers, "Content-Length": length, **fault.get("headers", {})}.items():
            if name.lower() not in NOT_COPIED or name == "Content-Length":
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if "cut" in fault:
            self.wfile.write(body[: fault["cut"]])
            self.close_connection = True
            return
        rate = fault.get("bytes_per_second")
        for begin in range(0, len(body), CHUNK_BYTES):
            chunk = body[begin : begin + CHUNK_BYTES]
            self.wfile.write(chunk)
            time.sleep(0 if rate is None else len(chunk) / rate)

    def handle(self) -> None:
        with suppress(ConnectionError, ssl.SSLError):  # a client that ends
            super().handle()

    def log_message(self, *_: object) -> None:
        pass


class Faults:
    """A running proxy, and what it is told."""

    def __init__(self, url: str):
        self.url = url

    def inject(self, *faults: Fault) -> None:
        """Replace the faults of the next requests."""
        httpx.post(self.url + FAULTS, json=faults).raise_for_status()

    @property
    def left(self) -> list[Fault]:
        found: list[Fault] = httpx.get(self.url + FAULTS).json()
        return found


@contextmanager
def fault_proxy(upstream: str, *certificate: str) -> Iterator[Faults]:
    """Run a proxy in a process of its own.

    Args:
        certificate: files with a certificate and its key, for TLS.
    """
    command = [sys.executable, "-m", "tests.fault_proxy", upstream, *certificate]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Faults(process.stdout.readline().strip())
        finally:
            process.kill()


def main() -> None:
    server = Proxy(sys.argv[1])
    scheme = "http"
    if len(sys.argv) > 2:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*sys.argv[2:])
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    print(f"{scheme}://127.0.0.1:{server.server_port}", flush=True)  # noqa: T201
    server.serve_forever()


if __name__ == "__main__":
    main()
