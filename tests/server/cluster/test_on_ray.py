"""Two replicas of the bundled model on a Ray cluster of this machine, beside a plain server of the same model.

One cluster serves all tests, as its start takes most of their time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import anthropic
import grpc
import httpx
import ollama
import psutil
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from server.loading.bundled_weights import ADAPTERS
from server.model.checkpoint.locate import BUNDLED_NAME as MODEL
from tests.collector import Collector, collecting
from tests.dashboards import OF_REPLICAS, queries
from tests.e2e.processes import Server, serving
from tests.server.cluster.ray_cluster import Cluster, running, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

QUESTION = [{"role": "user", "content": "Write a recipe for apple pie."}]
NUM_TOKENS = 24
STORY = {"model": MODEL, "prompt": "Once upon a time", "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Cluster]:
    settings = {
        "dtype": "float32",
        "adapters_dir": str(ADAPTERS),
        "otlp_endpoint": collector.url,
        "max_running_requests": 2,
    }
    environment = {"OTEL_BSP_SCHEDULE_DELAY": "100"}  # milliseconds
    with running(tmp_path_factory.mktemp("cluster"), environment, settings=settings, replicas=2) as started:
        yield started


@pytest.fixture(scope="module")
def plain() -> Iterator[Server]:
    arguments = ("--dtype", "float32", "--threads", "1", "--memory", "700MiB", "--adapters-dir", str(ADAPTERS))
    with serving(*arguments) as server:
        yield server


@pytest.fixture(scope="module")
def text(plain: Server) -> str:
    """The reply of a plain server, which every dialect must equal."""
    with plain.client() as client:
        reply = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=NUM_TOKENS)
    return reply.choices[0].message.content


def test_openais_stream_equals_a_plain_servers_reply(cluster: Cluster, text: str) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": NUM_TOKENS}
    with cluster.client() as client:
        deltas = [chunk.choices[0].delta.content for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(filter(None, deltas)) == text


def test_anthropics_stream_equals_a_plain_servers_reply(cluster: Cluster, text: str) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "max_tokens": NUM_TOKENS, "extra_body": {"temperature": 0}}
    client = anthropic.Anthropic(base_url=cluster.url, api_key="none", max_retries=0)
    with client, client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == text


def test_ollamas_stream_equals_a_plain_servers_reply(cluster: Cluster, text: str) -> None:
    options = {"temperature": 0, "num_predict": NUM_TOKENS}
    with ollama.Client(cluster.url) as client:
        parts = client.chat(MODEL, messages=QUESTION, options=options, stream=True)
        assert "".join(part.message.content for part in parts) == text


def test_logprobs_are_bit_equal_to_a_plain_servers(cluster: Cluster, plain: Server) -> None:
    asked = {**STORY, "max_tokens": 16, "logprobs": 3}
    replies = [httpx.post(f"{url}/v1/completions", json=asked, timeout=60).json() for url in (cluster.url, plain.url)]
    assert replies[0]["choices"] == replies[1]["choices"]


def test_a_request_that_is_refused_gets_its_status_before_a_stream_begins(cluster: Cluster) -> None:
    with cluster.http() as http:
        reply = http.post("/v1/completions", json={**STORY, "stream": True, "logit_bias": {"9999999": 1}})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "logit_bias")


def test_a_request_keeps_its_id(cluster: Cluster) -> None:
    with cluster.http() as http:
        reply = http.post("/v1/completions", json={**STORY, "max_tokens": 1}, headers={"X-Request-Id": "from-afar"})
    assert reply.headers["x-request-id"] == "from-afar"


def test_the_phases_in_a_replica_are_in_the_trace_of_the_request(cluster: Cluster, collector: Collector) -> None:
    trace_id = bytes(range(16))
    with cluster.http() as http:
        headers = {"traceparent": f"00-{trace_id.hex()}-00f067aa0ba902b7-01"}
        http.post("/v1/completions", json={**STORY, "max_tokens": 4}, headers=headers).raise_for_status()

    def spans() -> list[Span]:
        return [span for span in collector.spans if span.trace_id == trace_id]

    wait_until(lambda: any(span.name == "replica" for span in spans()), 10)
    by_id = {span.span_id: span for span in spans()}
    (replica,) = [span for span in spans() if span.name == "replica"]
    work = by_id[replica.parent_span_id]
    phases = [span for span in spans() if span.parent_span_id == replica.span_id]
    assert work.name == f"text_completion {MODEL}"
    assert [span.name for span in phases] == ["queue", "prefill", "decode"]
    times = [work.start_time_unix_nano, *(span.start_time_unix_nano for span in phases), work.end_time_unix_nano]
    assert times == sorted(times)


def test_replicas_have_the_priority_of_the_command_that_started_them(cluster: Cluster) -> None:
    assert {process.nice() for process in cluster.processes()} == {psutil.Process(cluster.process.pid).nice()}


def test_ray_listens_on_loopback_alone_but_for_serves_port_of_each_replica_which_needs_the_token(
    cluster: Cluster,
) -> None:
    titles = {}
    for process in psutil.Process(cluster.process.pid).children(recursive=True):
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN and not connection.laddr.ip.endswith("127.0.0.1"):
                titles[connection.laddr.port] = " ".join(process.cmdline())
    assert len(titles) == 3
    assert all(title.startswith("ray::ServeReplica:greenroom:") for title in titles.values())
    for port in titles:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"", timeout=10)
        assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_more_requests_than_twice_the_replicas_are_all_answered_by_both(cluster: Cluster) -> None:
    before = cluster.metric("generation_tokens_total")

    def ask(number: int) -> int:
        with cluster.http() as http:
            asked = {**STORY, "prompt": f"Story {number}:", "max_tokens": 16}
            return http.post("/v1/completions", json=asked).json()["usage"]["completion_tokens"]

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(24))) == [16] * 24
    grown = {labels: value - before[labels] for labels, value in cluster.metric("generation_tokens_total").items()}
    assert len(grown) == 2
    assert min(grown.values()) >= 4 * 16


def test_a_client_that_leaves_frees_its_slot(cluster: Cluster) -> None:
    asked = {**STORY, "max_tokens": 2000, "stream": True}
    with cluster.http() as http, http.stream("POST", "/v1/completions", json=asked) as reply:
        lines = reply.iter_lines()  # dropping it would close the connection
        next(lines)
        wait_until(lambda: cluster.total("num_requests_running") == 1, 5)
    wait_until(lambda: not cluster.total("num_requests_running"), 5)


def test_an_adapter_is_loaded_by_all_replicas_and_answers_as_a_plain_servers(cluster: Cluster, plain: Server) -> None:
    body = {"lora_name": "pies", "lora_path": "recipes"}
    asked = {**STORY, "model": "pies", "max_tokens": 16}
    with cluster.http() as http:
        assert http.post("/v1/load_lora_adapter", json=body).is_success
        replies = [http.post("/v1/completions", json=asked).json()["choices"] for _ in range(4)]
    assert len(cluster.metric("adapter_requests_total")) == 2
    httpx.post(f"{plain.url}/v1/load_lora_adapter", json=body).raise_for_status()
    expected = httpx.post(f"{plain.url}/v1/completions", json=asked, timeout=60).json()["choices"]
    assert replies == [expected] * 4


def test_a_variant_is_loaded_by_all_replicas_and_answers_as_a_plain_servers(cluster: Cluster, plain: Server) -> None:
    body = {"name": "law", "path": "legal"}
    asked = {**STORY, "model": f"{MODEL}:law", "max_tokens": 16}
    with cluster.http() as http:
        http.post("/v1/experts/load", json=body).raise_for_status()
        replies = [http.post("/v1/completions", json=asked).json()["choices"] for _ in range(4)]
    httpx.post(f"{plain.url}/v1/experts/load", json=body).raise_for_status()
    expected = httpx.post(f"{plain.url}/v1/completions", json=asked, timeout=60).json()["choices"]
    assert replies == [expected] * 4


def test_a_change_by_an_administrator_is_in_the_log(cluster: Cluster) -> None:
    with cluster.http() as http:
        http.post("/v1/experts/prefetch", json={"experts": [[0, 0]]}).raise_for_status()
    wait_until(lambda: "greenroom.audit" in cluster.log_text(), 10)


def test_an_adapter_that_can_not_be_loaded_is_refused_with_its_reason(cluster: Cluster) -> None:
    with cluster.http() as http:
        reply = http.post("/v1/load_lora_adapter", json={"lora_name": "none", "lora_path": "no-such-folder"})
        names = [model["id"] for model in http.get("/v1/models").json()["data"]]
    assert reply.status_code == 400
    assert "no-such-folder" in reply.json()["error"]["message"]
    assert "none" not in names


def test_every_metric_of_the_dashboard_of_replicas_is_there_by_replica(cluster: Cluster) -> None:
    page = httpx.get(f"{cluster.url}/metrics", timeout=60).text
    dashboard = json.loads(OF_REPLICAS.read_text())
    asked = {name for _, query in queries(dashboard) for name in re.findall(r"greenroom_replica_\w+", query)}
    told = {name: set(re.findall(rf'^{name}{{replica="(\w+)"', page, re.MULTILINE)) for name in asked}
    assert asked
    assert {name: len(replicas) for name, replicas in told.items()} == dict.fromkeys(asked, 2)


def test_experts_of_all_replicas_are_shown_as_one_model(cluster: Cluster) -> None:
    with cluster.http() as http:
        view = http.get("/v1/experts").json()
    assert (view["object"], view["replicas"]) == ("experts", 2)
    assert {expert["residency"] for layer in view["layers"] for expert in layer["experts"]} <= {"host", "disk"}


def test_a_replica_that_dies_in_a_stream_ends_it_with_an_error_that_says_to_retry(cluster: Cluster) -> None:
    asked = {**STORY, "max_tokens": 2000, "stream": True}
    with cluster.http() as http, http.stream("POST", "/v1/completions", json=asked) as reply:
        lines = reply.iter_lines()
        next(lines)
        for process in cluster.processes():
            process.kill()
        *_, last, done = [line for line in lines if line.startswith("data: ")]
    assert done == "data: [DONE]"
    assert "send the request again" in json.loads(last.removeprefix("data: "))["error"]["message"]
