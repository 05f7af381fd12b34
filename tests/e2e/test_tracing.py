"""`greenroom serve --otlp-endpoint`: the real command sends traces to a real collector."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from tests.collector import Collector, attributes_of, collecting
from tests.e2e.processes import run_command, serving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "The whereabouts of the treasure"


def test_a_request_is_traced_down_to_the_experts_it_waited_for() -> None:
    with (
        collecting() as collector,
        serving("--otlp-endpoint", collector.url, "--host-expert-memory", "1", "--log-format", "json") as server,
    ):
        server.client().chat.completions.create(
            model="greenroom-demo",
            messages=[{"role": "user", "content": SECRET}],
            max_tokens=8,
            extra_headers={"traceparent": f"00-{TRACE}-{PARENT}-01"},
            extra_body={"ignore_eos": True},
        )
        server.process.send_signal(signal.SIGTERM)
        status, _, err = server.end()
    assert status == 0
    assert_told(collector)
    [line] = [line for line in map(json.loads, err.splitlines()) if line["message"] == "request"]
    assert line["trace_id"] == TRACE
    assert SECRET not in str(collector.batches)


def assert_told(collector: Collector) -> None:
    """A chat that read experts is one trace, whose waits are those that it was billed for."""
    spans = {span.name: span for span in collector.spans}
    assert spans.keys() == {
        "POST /v1/chat/completions", "prepare", "chat greenroom-demo", "queue", "prefill", "decode", "expert_stall",
    }  # fmt: skip
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert spans["POST /v1/chat/completions"].parent_span_id.hex() == PARENT
    work = attributes_of(spans["chat greenroom-demo"].attributes)
    assert work["gen_ai.usage.output_tokens"] == 8
    phases = [attributes_of(spans[name].attributes) for name in ("prefill", "decode")]
    for cost in ("misses", "bytes_read", "stall_seconds"):
        name = f"greenroom.expert.{cost}"
        assert sum(phase[name] for phase in phases) == work[name] > 0
    ids = {spans[name].span_id for name in ("prefill", "decode")}
    stalls = [span for span in collector.spans if span.name == "expert_stall"]
    assert 1 <= len(stalls) <= 16
    assert {span.parent_span_id for span in stalls} <= ids
    for span in stalls:
        seconds = attributes_of(span.attributes)["greenroom.expert.stall_seconds"]
        assert 0 < seconds <= (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9 + 1e-6


def test_contradictory_opentelemetry_variables_are_one_line() -> None:
    result = run_command(
        "serve", "--port", "0", "--otlp-endpoint", "http://localhost:4318",
        environment={"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "5000"},
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(
        "greenroom: --otlp-endpoint: the OTEL_... environment variables are contradictory: max_export"
    )
    assert len(result.stderr.splitlines()) == 1


def test_missing_opentelemetry_is_refused_with_the_package(tmp_path: Path) -> None:
    hiding = "import sys; sys.modules['opentelemetry.sdk'] = None"  # as if it were not there
    (tmp_path / "sitecustomize.py").write_text(hiding)
    result = run_command(
        "serve", "--port", "0", "--otlp-endpoint", "http://localhost:4318", environment={"PYTHONPATH": str(tmp_path)}
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "greenroom: --otlp-endpoint needs OpenTelemetry: pip install 'greenroom[otel]'\n"
