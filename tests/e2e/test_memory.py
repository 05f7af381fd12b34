"""A server stays within its memory budget under any load."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib import import_module
from typing import Any

import httpx
import pytest
from PIL import Image

from benchmarks.comparison.control_group import ControlGroup, ControlGroupError
from tests.e2e.processes import run_command, serving
from tests.vision import data_url, png, save_bytes_and_images

MIB = 1 << 20
LIMIT = 600 * MIB
NUM_STREAMS = 32
SMALL_LIMIT = 400 * MIB  # 50 MiB beside the process, the model and its smallest KV cache


def make_group(limit_bytes: int) -> ControlGroup:
    """Make a control group, or skip the test. Pages of libraries count in the group that reads them first: not here."""
    import_module("server.loading.load")
    try:
        return ControlGroup(limit_bytes)
    except ControlGroupError as error:
        pytest.skip(str(error))


@pytest.fixture
def group() -> Iterator[ControlGroup]:
    group = make_group(LIMIT)
    yield group
    group.close()


def test_a_burst_in_a_small_control_group_is_answered_and_nothing_is_killed(group: ControlGroup) -> None:
    with serving(group=group) as server, httpx.Client(base_url=server.url, timeout=300) as http:

        def ask(number: int) -> int:
            prompt = [(number * 7 + position) % 500 + 3 for position in range(200 + 40 * number)]
            body = {"prompt": prompt, "max_tokens": 16, "ignore_eos": True, "n": 1 + number % 3}
            return http.post("/v1/completions", json=body).status_code

        pids = group.pids()
        with ThreadPoolExecutor(NUM_STREAMS) as threads:
            assert set(threads.map(ask, range(NUM_STREAMS))) == {200}
        assert set(pids) <= set(group.pids())
        peak = group.peak_bytes()
        assert peak is None or peak <= LIMIT


def test_too_little_memory_is_refused_with_the_size_that_is_enough() -> None:
    refused = run_command("serve", "--port", "0", "--memory", "100MiB")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    advised = re.search(r"set --memory to (\d+MiB) or more", refused.stderr)
    assert advised is not None, refused.stderr
    with serving("--memory", advised.group(1)) as server:
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "Once", "max_tokens": 4}, timeout=60)
    assert answer.status_code == 200


def prompt(number: int, length: int = 1500) -> list[int]:
    return [(number * 7 + position) % 200 for position in range(length)]


def chat(content: object, **others: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **others}


def schema(number: int) -> dict[str, Any]:
    members = {f"member_{number}_{index}": {"type": ["string", "number"], "maxLength": 40} for index in range(400)}
    return {"type": "object", "properties": members, "required": [*members], "additionalProperties": False}


LARGE_IMAGE = data_url(png(Image.new("RGB", (1024, 1024))))  # 12 MiB to decode and process

# Requests that make a server hold much, by kind; all together need several times the memory that there is.
HEAVY: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "logprobs": ("/v1/completions", [{"prompt": "a", "n": 16, "max_tokens": 100, "logprobs": 20}] * 2),
    "prompt logprobs": (
        "/v1/completions",
        [{"prompt": prompt(each), "max_tokens": 1, "prompt_logprobs": 20} for each in range(8)],
    ),
    "routing": ("/v1/completions", [{"prompt": "a", "n": 32, "max_tokens": 50, "return_experts": True}] * 2),
    "choices": ("/v1/completions", [{"prompt": "a", "n": 128, "max_tokens": 20}] * 2),
    "bodies": ("/v1/completions", [{"prompt": "a" * (6 * MIB)}] * 4),
    "numbers": ("/v1/completions", [{"prompt": [[100] * 500_000]}] * 4),
    "schemas": (
        "/v1/chat/completions",
        [
            chat(
                "a",
                max_tokens=4,
                response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema(each)}},
            )
            for each in range(16)
        ],
    ),
    "vectors": ("/v1/embeddings", [{"input": [[each % 200] * 4 for each in range(2048)]}] * 3),
    "chats": ("/v1/chat/completions", [chat("a", n=8, max_tokens=100, logprobs=True, top_logprobs=20)] * 2),
    "images": (
        "/v1/chat/completions",
        [chat([{"type": "image_url", "image_url": {"url": LARGE_IMAGE}}], max_tokens=2)] * 6,
    ),
}

LIMITS = (" of memory, and other requests hold ", "Too many grammars are being compiled")  # that refuse a request
TOO_LONG = {"bodies", "numbers"}  # for the model; the others can be answered


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ControlGroup]]:
    """A server of a model that takes images, in a small control group."""
    folder = save_bytes_and_images(tmp_path_factory.mktemp("images"))
    group = make_group(SMALL_LIMIT)
    with serving(str(folder), "--max-queued-requests", "1024", group=group) as server:
        yield server.url, group
    group.close()


@pytest.mark.parametrize("kinds", [[kind] for kind in HEAVY] + [[*HEAVY]], ids=lambda kinds: "-".join(kinds)[:20])
def test_what_requests_hold_stays_inside_a_control_group(small: tuple[str, ControlGroup], kinds: list[str]) -> None:
    """Each is answered, or refused with the number."""
    url, group = small
    pids = set(group.pids())
    with httpx.Client(base_url=url, timeout=300) as http, ThreadPoolExecutor(NUM_STREAMS) as threads:
        asked = [(path, body) for path, bodies in (HEAVY[kind] for kind in kinds) for body in bodies]
        answers = list(threads.map(lambda each: http.post(each[0], json=each[1] | {"ignore_eos": True}), asked))
        refused = [answer.json()["error"]["message"] for answer in answers if answer.status_code == 503]
        statuses = {answer.status_code for answer in answers}
        assert statuses <= {200, 400, 503}
        assert 200 in statuses or set(kinds) <= TOO_LONG
        assert [message for message in refused if not any(limit in message for limit in LIMITS)] == []
        assert http.post("/v1/completions", json={"prompt": "Once", "max_tokens": 4}).status_code == 200
    assert pids <= set(group.pids())
    peak = group.peak_bytes()
    assert peak is None or peak <= SMALL_LIMIT


def test_streams_that_nobody_reads_stay_inside_a_control_group(small: tuple[str, ControlGroup]) -> None:
    url, group = small
    pids = set(group.pids())
    host = httpx.URL(url)
    body = json.dumps({"prompt": "a", "n": 8, "max_tokens": 150, "logprobs": 20, "ignore_eos": True, "stream": True})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host.host}\r\nContent-Type: application/json\r\n"
    with ExitStack() as connections:
        for _ in range(8):
            connection = connections.enter_context(socket.create_connection((host.host, host.port), timeout=60))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "Once", "max_tokens": 100}, timeout=120)
        assert answer.status_code == 200
    assert pids <= set(group.pids())
