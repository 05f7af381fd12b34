"""Replies of Serve's proxy whose ingress is gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from server.cluster.proxy_errors import ProxyErrors

EVENT = b"event: token\ndata: {}\n\n"


class Proxy:
    """A proxy that sends some messages, and then ends, as Serve's does when the ingress has died."""

    def __init__(self, *messages: Message):
        self._messages = messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        scope["headers"].append((b"x-request-id", b"from-serve"))
        for message in self._messages:
            await send(message)


def start(status: int, media_type: str) -> Message:
    headers = [(b"content-type", media_type.encode())]
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(content: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


def ask(path: str, *messages: Message) -> httpx.Response:
    """Return the reply to a request."""

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(ProxyErrors(Proxy(*messages)))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post(path)

    return asyncio.run(run())


def of_openai(reply: Any) -> str:
    return str(reply["error"]["message"])


def of_anthropic(reply: Any) -> str:
    assert (reply["type"], reply["request_id"]) == ("error", "from-serve")
    return of_openai(reply)


def of_ollama(reply: Any) -> str:
    return str(reply["error"])


DIALECTS = [("/v1/chat/completions", of_openai), ("/v1/messages", of_anthropic), ("/api/chat", of_ollama)]


@pytest.mark.parametrize(("path", "message_of"), DIALECTS)
def test_a_request_without_a_reply_gets_the_dialects_error_that_says_to_retry(
    path: str, message_of: Callable[[Any], str]
) -> None:
    reply = ask(path)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert reply.headers["x-request-id"] == "from-serve"
    assert "send the request again" in message_of(reply.json())


@pytest.mark.parametrize(("status", "told"), [(500, 503), (503, 503), (408, 503), (429, 429)])
def test_an_error_of_serve_gets_the_form_of_the_dialect(status: int, told: int) -> None:
    reply = ask("/v1/completions", start(status, "text/plain; charset=utf-8"), body(b"Traceback", more=False))
    assert (reply.status_code, reply.headers["retry-after"]) == (told, "1")
    assert "send it again" in of_openai(reply.json())


@pytest.mark.parametrize(
    ("path", "media_type", "last"),
    [
        ("/v1/chat/completions", "text/event-stream; charset=utf-8", ['data: {"error"', "data: [DONE]"]),
        ("/v1/messages", "text/event-stream", ["event: error", 'data: {"type":"error"']),
        ("/api/generate", "application/x-ndjson", ['{"error"']),
    ],
)
def test_a_stream_that_was_cut_ends_with_the_dialects_error(path: str, media_type: str, last: Sequence[str]) -> None:
    lines = [line for line in ask(path, start(200, media_type), body(EVENT)).text.splitlines() if line]
    ends = lines[-len(last) :]
    assert [line[: len(begin)] for line, begin in zip(ends, last, strict=True)] == last
    assert any("send the request again" in line for line in ends)


def test_the_error_of_a_cut_stream_of_responses_has_the_next_number() -> None:
    reply = ask("/v1/responses", start(200, "text/event-stream"), body(EVENT), body(EVENT + EVENT))
    event = json.loads(reply.text.splitlines()[-2].removeprefix("data: "))
    assert (event["type"], event["sequence_number"]) == ("error", 3)


@pytest.mark.parametrize(
    ("method", "messages"),
    [
        ("POST", [start(200, "text/event-stream"), body(EVENT), body(b"", more=False)]),
        ("GET", [start(200, "text/event-stream"), body(EVENT)]),
        ("POST", [start(503, "application/json"), body(b"{}", more=False)]),
        ("GET", [start(200, "text/plain"), body(b"greenroom_model_info 1", more=False)]),
    ],
)
def test_what_an_ingress_has_sent_is_passed_on_as_it_is(method: str, messages: list[Message]) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    scope = {"type": "http", "method": method, "path": "/v1/experts/stream", "headers": []}
    asyncio.run(ProxyErrors(Proxy(*messages))(scope, receive, send))
    assert sent == messages
