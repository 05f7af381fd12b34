"""Export of request traces to an OpenTelemetry collector by OTLP over HTTP.

OpenTelemetry's environment variables apply: ``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``,
``OTEL_TRACES_SAMPLER``, ``OTEL_EXPORTER_OTLP_HEADERS`` and so on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from uuid import uuid4

import requests
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import (
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.observability.bounded_session import bounded_session
from server.redaction import redact

TRACES_PATH = "/v1/traces"
LAST_SPANS_SECONDS = 2.0  # time to send the remaining spans at shutdown

log = logging.getLogger(__name__)

Value = str | bool | int | float | Sequence[str]


class Span(Protocol):
    """A span of time with its child spans; times are seconds of ``time.monotonic``."""

    @property
    def name(self) -> str: ...
    @property
    def started_at(self) -> float: ...
    @property
    def ended_at(self) -> float: ...
    @property
    def attributes(self) -> Mapping[str, Value]: ...
    @property
    def children(self) -> Sequence[Span]: ...
    @property
    def is_failed(self) -> bool: ...


class Tracing:
    """Passes spans to a thread that exports them in batches. Spans that the collector takes too slowly are dropped.

    Args:
        exporter: sends the spans; ``otlp_exporter`` makes one.
        version: version of Greenroom.
    """

    def __init__(self, exporter: SpanExporter, version: str):
        named = OTELResourceDetector().detect().attributes
        ours = {SERVICE_NAME: "greenroom", SERVICE_VERSION: version, SERVICE_INSTANCE_ID: uuid4().hex}
        self._provider = TracerProvider(resource=Resource.create({**ours, **named}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("greenroom", version)
        self._propagator = TraceContextTextMapPropagator()

    def record(self, span: Span, headers: Mapping[str, str]) -> str | None:
        """Record an ended span and its children; return the trace id if OpenTelemetry made one.

        Args:
            headers: headers of the request, which may name the parent span.
        """
        clock = time.time_ns() - time.monotonic_ns()
        context = self._propagator.extract(dict(headers), Context())
        return self._record(span, context, SpanKind.SERVER, clock)

    def _record(self, span: Span, context: Context, kind: SpanKind, clock: int) -> str | None:
        started = self._tracer.start_span(
            span.name, context, kind, dict(span.attributes), start_time=clock + _nanoseconds(span.started_at)
        )
        if span.is_failed:
            started.set_status(Status(StatusCode.ERROR))
        within = set_span_in_context(started, context)
        if started.is_recording():
            for child in span.children:
                self._record(child, within, SpanKind.INTERNAL, clock)
        started.end(clock + _nanoseconds(span.ended_at))
        made = started.get_span_context()
        return format_trace_id(made.trace_id) if made.is_valid else None

    def close(self) -> None:
        """Send the remaining spans within ``LAST_SPANS_SECONDS``."""
        ending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        ending.start()
        ending.join(LAST_SPANS_SECONDS)
        if ending.is_alive():
            log.warning(
                "the trace collector did not accept the last spans within %g s; they are lost", LAST_SPANS_SECONDS
            )


def otlp_exporter(endpoint: str) -> SpanExporter:
    """Return an exporter that sends spans to a collector.

    Args:
        endpoint: address of the collector, such as ``http://localhost:4318``, or of its traces route.
    """
    address = endpoint.rstrip("/")
    session = bounded_session()
    session.hooks["response"].append(_refuse_redirect)
    return OTLPSpanExporter(address if address.endswith(TRACES_PATH) else address + TRACES_PATH, session=session)


def _refuse_redirect(response: requests.Response, **_: Any) -> None:
    """Raise on a redirect; the exporter would treat it as success and lose the spans."""
    if response.is_redirect:
        response.close()
        raise requests.TooManyRedirects(
            f"{redact(response.url)} redirects to {redact(response.headers['location'])!r}; set "
            "--otlp-endpoint to the final address"
        )


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
