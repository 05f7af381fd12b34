"""Unknown names of thousands of models, routes and request ids make no new metric, label or growth."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator

import pytest

from tests.faults.bundled import serving_bundled
from tests.server.live.conftest import LiveServer

pytestmark = pytest.mark.slow

NUM_NAMES = 2000


@pytest.fixture(scope="module")
def served() -> Iterator[LiveServer]:
    with serving_bundled() as (server, _):
        yield server


@pytest.fixture
def connection(served: LiveServer) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", served.port)
    yield connection
    connection.close()


def samples(connection: http.client.HTTPConnection) -> set[str]:
    """Return names and labels of all samples."""
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


def test_names_that_clients_choose_become_no_labels(connection: http.client.HTTPConnection) -> None:
    def send(method: str, path: str, name: str) -> int:
        body = json.dumps({"model": name, "prompt": "x", "user": name}) if method == "POST" else None
        headers = {"Content-Type": "application/json", "X-Request-Id": name, "User-Agent": name}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        response.read()
        return response.status

    requests = [("POST", "/v1/completions"), ("GET", "/v1/models/{}"), ("GET", "/{}"), ("POST", "/api/generate")]
    for method, path in requests:
        send(method, path.format("first"), "first")
    before = samples(connection)
    for number in range(NUM_NAMES):
        method, path = requests[number % len(requests)]
        name = f"name-{number}"
        assert send(method, path.format(name), name) == 404
    assert samples(connection) == before
