"""Export of spans to a collector, over a real socket."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field

import pytest

from server.observability import otlp
from server.observability.otlp import Tracing, otlp_exporter
from tests.collector import Collector, attributes_of, collecting

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass
class Work:
    """A span."""

    name: str
    started_at: float
    ended_at: float
    attributes: dict[str, str | int | list[str]] = field(default_factory=dict)
    children: list[Work] = field(default_factory=list)
    is_failed: bool = False


def a_second_ago(**attributes: str | int | list[str]) -> Work:
    now = time.monotonic()
    part = Work("part", now - 0.75, now - 0.25, {"layer": 3})
    return Work("whole", now - 1, now, dict(attributes), [part])


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Collector:
    monkeypatch.setattr(otlp, "LAST_SPANS_SECONDS", 60.0)  # a busy machine takes longer
    with collecting() as collector:
        yield collector


def send(collector: Collector, span: Work, headers: dict[str, str] | None = None, path: str = "") -> str | None:
    tracing = Tracing(otlp_exporter(collector.url + path), "1.2")
    trace = tracing.record(span, headers or {})
    tracing.close()
    return trace


@pytest.mark.parametrize("path", ["", "/", "/v1/traces"])
def test_spans_arrive_unchanged(collector: Collector, path: str) -> None:
    sent_at = time.time_ns()
    trace = send(collector, a_second_ago(kind="chat", reasons=["stop", "length"], count=2), path=path)
    whole, part = collector.spans
    assert (whole.name, part.name) == ("whole", "part")
    assert attributes_of(whole.attributes) == {"kind": "chat", "reasons": ("stop", "length"), "count": 2}
    assert attributes_of(part.attributes) == {"layer": 3}
    assert {whole.trace_id.hex(), part.trace_id.hex()} == {trace}
    assert (part.parent_span_id, whole.parent_span_id) == (whole.span_id, b"")
    assert (whole.kind, part.kind) == (whole.SPAN_KIND_SERVER, whole.SPAN_KIND_INTERNAL)
    assert whole.end_time_unix_nano - whole.start_time_unix_nano == pytest.approx(1e9, abs=1e3)
    assert part.start_time_unix_nano - whole.start_time_unix_nano == pytest.approx(0.25e9, abs=1e3)
    assert whole.end_time_unix_nano == pytest.approx(sent_at, abs=60e9)


def test_the_resource_names_the_service(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    send(collector, a_second_ago())
    assert collector.resource["service.name"] == "greenroom"
    assert collector.resource["service.version"] == "1.2"
    collector.batches.clear()
    monkeypatch.setenv("OTEL_SERVICE_NAME", "experts-of-law")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=law")
    send(collector, a_second_ago())
    assert collector.resource["service.name"] == "experts-of-law"
    assert collector.resource["deployment.environment.name"] == "test"
    assert collector.headers[-1]["x-tenant"] == "law"


def test_a_request_joins_the_trace_of_its_client(collector: Collector) -> None:
    trace = send(collector, a_second_ago(), {"host": "x", "traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert trace == TRACE
    assert collector.spans[0].parent_span_id.hex() == PARENT


@pytest.mark.parametrize("parent", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01" * 1000])
def test_an_invalid_trace_header_begins_a_new_trace(collector: Collector, parent: str) -> None:
    trace = send(collector, a_second_ago(), {"traceparent": parent})
    assert trace not in {"0" * 32, TRACE}
    assert len(collector.spans) == 2


def test_a_span_that_the_client_does_not_sample_is_not_sent(collector: Collector) -> None:
    trace = send(collector, a_second_ago(), {"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert trace == TRACE
    assert collector.batches == []


def test_opentelemetry_can_be_turned_off(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert send(collector, a_second_ago()) is None
    assert collector.batches == []


def test_a_failed_span_has_an_error_status(collector: Collector) -> None:
    span = a_second_ago()
    span.is_failed = True
    send(collector, span)
    assert [each.status.code for each in collector.spans] == [2, 0]


@pytest.mark.slow
def test_a_collector_that_does_not_answer_delays_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        tracing = Tracing(otlp_exporter(f"http://127.0.0.1:{deaf.getsockname()[1]}"), "1.2")
        for _ in range(5000):  # more than the queue takes
            tracing.record(a_second_ago(), {})
        tracing.close()
    assert "did not accept the last spans within 2 s; they are lost" in caplog.text


def test_a_redirect_is_logged(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    """A proxy that requires https redirects; treating that as success would lose every span."""
    collector.redirects_to = "https://elsewhere.example/v1/traces"
    send(collector, a_second_ago())
    assert f"{collector.url}/v1/traces redirects to 'https://elsewhere.example/v1/traces'; set" in caplog.text


def test_a_missing_collector_delays_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    tracing = Tracing(otlp_exporter(url), "1.2")
    tracing.record(a_second_ago(), {})
    tracing.close()
    assert f"the request to {url}/v1/traces failed: " in caplog.text
