"""A collector of traces on a real socket, which takes what OpenTelemetry sends over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span


@dataclass
class Collector:
    """The spans that have arrived."""

    url: str
    batches: list[ResourceSpans] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)  # of each delivery, by their names in lower case
    has_come: threading.Event = field(default_factory=threading.Event)
    redirects_to: str | None = None  # another address, without taking anything

    @property
    def spans(self) -> list[Span]:
        """All of them, in the order of their beginning."""
        spans = [span for batch in self.batches for scope in batch.scope_spans for span in scope.spans]
        return sorted(spans, key=lambda span: span.start_time_unix_nano)

    @property
    def resource(self) -> dict[str, object]:
        """The attributes of the sender."""
        return attributes_of(self.batches[0].resource.attributes)


def attributes_of(pairs: Iterator[KeyValue]) -> dict[str, object]:
    """Plain values by their keys; lists are tuples."""

    def plain(value: object) -> object:
        kind = value.WhichOneof("value")
        found = getattr(value, kind)
        return tuple(plain(each) for each in found.values) if kind == "array_value" else found

    return {pair.key: plain(pair.value) for pair in pairs}


@contextmanager
def collecting() -> Iterator[Collector]:
    """Take traces on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if collector.redirects_to is not None:
                self.send_response(308)
                self.send_header("Location", collector.redirects_to)
                self.end_headers()
                return
            if self.path == "/v1/traces":
                collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                collector.batches.extend(ExportTraceServiceRequest.FromString(body).resource_spans)
                collector.has_come.set()
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
