"""A real Prometheus scrapes a real server: its rules evaluate, and every query of the dashboards has data.

Where Debian's package `prometheus` is not installed, these tests are skipped.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import openai
import pytest
import yaml

from client import Client
from tests.dashboards import DASHBOARDS, DOCKER, OF_SERVERS, queries
from tests.e2e.processes import Server, serving
from tests.e2e.weights import make_weights

RULES = DOCKER / "prometheus/rules.yml"
MODEL = "greenroom-demo"
POD = {"namespace": "default", "pod": "greenroom-0"}  # as Kubernetes' service discovery tells them

pytestmark = [
    pytest.mark.prometheus,
    pytest.mark.skipif(
        not (shutil.which("prometheus") and shutil.which("promtool")),
        reason="prometheus and promtool are not installed (Debian and Ubuntu: apt-get install prometheus)",
    ),
]


def promtool(*arguments: str, stdin: str = "") -> str:
    """Run promtool, which must find no fault, and return its output."""
    done = subprocess.run(
        ["promtool", *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str, process: subprocess.Popen[str], log: Path):
        self.url, self._process, self._log = url, process, log

    def get(self, path: str, **params: str) -> Any:
        reply = httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=30).json()
        assert reply["status"] == "success", reply
        return reply["data"]

    def query(self, expression: str) -> list[float]:
        """Return the current values of a query."""
        data = self.get("query", query=expression)
        assert data["resultType"] == "vector"
        return [float(sample["value"][1]) for sample in data["result"]]

    def wait_until_ready(self) -> None:
        while True:
            assert self._process.poll() is None, self._log.read_text()
            try:
                if httpx.get(f"{self.url}/-/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            Event().wait(0.05)

    def wait_for(self, expression: str) -> None:
        """Wait until a query has a result."""
        while not self.query(expression):
            Event().wait(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def configure(folder: Path, server: Server) -> Path:
    """The configuration that is shipped, for this server and with scrapes in quick succession."""
    config = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    assert config["rule_files"] == ["rules.yml"]
    config["global"] = dict.fromkeys(config["global"], "200ms")
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [server.url.removeprefix("http://")], "labels": POD}]
    shutil.copy(RULES, folder)
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that nobody has asked before, with a variant and an adapter: rates are those of the traffic here."""
    flags = make_weights(tmp_path_factory.mktemp("weights"))
    with serving("--host-expert-memory", "25%", "--dtype", "float32", *flags) as running, Client(running.url) as client:
        client.load_variant("law", "law")
        client.load_adapter("code", "code")
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def prometheus(server: Server, client: openai.OpenAI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One that has seen the server before and after some traffic."""
    folder = tmp_path_factory.mktemp("prometheus")
    config, port, log = configure(folder, server), free_port(), folder / "log"
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=output, stderr=output, text=True
        )
    try:
        prometheus = Prometheus(f"http://127.0.0.1:{port}", process, log)
        prometheus.wait_until_ready()
        prometheus.wait_for("greenroom_engine_alive")
        generate(client)
        num_ended = server.total("request_success_total")
        prometheus.wait_for(f"sum(greenroom_request_success_total) == {num_ended}")
        yield prometheus
    finally:
        process.kill()
        process.wait()


def generate(client: openai.OpenAI) -> None:
    for prompt in ("Once upon a time", "To be, or not to be", "To be, or not to be"):
        client.completions.create(model=MODEL, prompt=prompt * 8, max_tokens=96, n=2, extra_body={"ignore_eos": True})
    for model in (f"{MODEL}:law", "code"):
        client.completions.create(model=model, prompt="To be", max_tokens=4)
    client.embeddings.create(model=MODEL, input=["one", "two"])


def test_promtool_finds_no_fault_in_the_metrics(server: Server) -> None:
    assert promtool("check", "metrics", stdin=httpx.get(f"{server.url}/metrics").text) == ""


def test_promtool_finds_no_fault_in_configuration_and_rules() -> None:
    promtool("check", "config", str(DOCKER / "prometheus/prometheus.yml"))
    promtool("check", "rules", str(RULES))


def test_rules_pass_their_own_tests() -> None:
    promtool("test", "rules", str(DOCKER / "prometheus/rules_test.yml"))


def test_rules_evaluate_and_a_server_that_is_well_raises_no_alert(prometheus: Prometheus, server: Server) -> None:
    prometheus.wait_for("greenroom:expert_stall_share:rate5m >= 0")
    names = {rule.get("record") or rule["alert"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}
    (group,) = prometheus.get("rules")["groups"]
    assert {rule["name"] for rule in group["rules"]} == names
    for rule in group["rules"]:
        assert (rule["health"], rule.get("lastError")) == ("ok", None), rule
        if rule["type"] == "recording":
            assert any(map(isfinite, prometheus.query(rule["name"]))), rule["name"]
    assert prometheus.query('ALERTS{alertstate="firing"}') == []
    assert prometheus.query(f'up{{instance="{server.url.removeprefix("http://")}"}}') == [1]


@pytest.mark.parametrize("dashboard", OF_SERVERS, ids=lambda path: path.stem)
def test_every_query_of_the_dashboards_has_data(prometheus: Prometheus, dashboard: Path) -> None:
    """Variables as they are at first, and times as they are soon after the first start."""
    (server,) = prometheus.get("label/instance/values", **{"match[]": "greenroom_engine_alive"})
    found = queries(json.loads(dashboard.read_text()))
    assert len(found) > 20
    for title, expression in found:
        for instance in (".*", re.escape(server)):
            shown = expression.replace("$instance", instance.replace("\\", "\\\\")).replace("$__rate_interval", "1m")
            values = prometheus.query(shown.replace("$__range", "30m"))
            assert any(map(isfinite, values)), f"{title}: {shown} has {values}"


def test_model_and_server_can_be_chosen_and_alerts_be_marked(prometheus: Prometheus, server: Server) -> None:
    (known,) = prometheus.get("series", **{"match[]": 'greenroom_model_info{model=~".*"}'})
    assert known["model"] == MODEL
    assert known["instance"] == server.url.removeprefix("http://")
    for path in DASHBOARDS:
        (annotation,) = json.loads(path.read_text())["annotations"]["list"]
        assert prometheus.query(annotation["target"]["expr"].replace("$instance", ".*")) == []


def test_autoscaler_gets_the_queue_of_each_pod(prometheus: Prometheus) -> None:
    (rule,) = yaml.safe_load((DOCKER / "kubernetes/adapter-values.yaml").read_text())["rules"]["custom"]
    (series,) = prometheus.get("series", **{"match[]": rule["seriesQuery"]})
    query = rule["metricsQuery"].replace("<<.Series>>", series["__name__"]).replace("<<.GroupBy>>", "pod")
    matchers = ",".join(f'{name}="{value}"' for name, value in POD.items())
    (sample,) = prometheus.get("query", query=query.replace("<<.LabelMatchers>>", matchers))["result"]
    assert sample["metric"] == {"pod": POD["pod"]}
    assert isfinite(float(sample["value"][1]))


def test_prometheus_has_the_numbers_of_the_server(prometheus: Prometheus, server: Server) -> None:
    for name in ("expert_tokens_total", "expert_lookups_total", "request_success_total", "prompt_tokens_total"):
        assert prometheus.query(f"sum(greenroom_{name})") == [server.total(name)]
