"""Over a real socket: the openai package, and clients that disconnect."""

import socket
import threading
from functools import partial
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from server.engine.interface import MAX_UNREAD, QueueFullError, TokenEvent, publish
from tests.server.api.fakes import MODEL, WAIT_SECONDS

MESSAGES = [{"role": "user", "content": "Tell me a story"}]


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_lists_models(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_openai_completes(client):
    reply = client.completions.create(model=MODEL, prompt="Once", n=2)
    assert [choice.text for choice in reply.choices] == ["Once upon a time"] * 2
    assert reply.usage.completion_tokens == 10


def test_openai_streams_completions(client):
    chunks = list(client.completions.create(model=MODEL, prompt="Once", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Once upon a time"


def test_openai_chats(client):
    reply = client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body={"top_k": 5})
    assert reply.choices[0].message.content == "Once upon a time"
    assert reply.choices[0].finish_reason == "stop"


def test_openai_streams_chats(client):
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, stream_options=options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Once upon a time"
    assert chunks[-1].usage.completion_tokens == 5


def test_openai_knows_the_errors(fake, client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="other", prompt="a")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model=MODEL, prompt="a", temperature=3)
    assert bad.value.param == "temperature"
    fake.engine.refusals = {0: QueueFullError("full")}
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model=MODEL, prompt="a")


def test_openai_raises_what_fails_in_a_stream(fake, client):
    fake.engine.failure = QueueFullError("no room left")
    stream = client.completions.create(model=MODEL, prompt="a", stream=True)
    with pytest.raises(openai.APIError, match="no room left"):
        list(stream)


@pytest.mark.parametrize("texts", [("Once",), ()])
def test_client_that_leaves_a_stream_cancels_every_choice(fake, url, texts):
    """Works even before anything was sent, when no write can fail."""
    fake.engine.texts = texts
    fake.engine.holds = True
    body = {"prompt": "a", "stream": True, "n": 2}
    with httpx.stream("POST", f"{url}/v1/completions", json=body) as response:
        assert response.status_code == 200
    assert all(stream.cancelled.wait(WAIT_SECONDS) for stream in fake.engine.streams)


def test_client_that_leaves_a_complete_reply_cancels_every_choice(fake, url):
    fake.engine.holds = True
    address = urlsplit(url)
    content = b'{"prompt": "a", "n": 2}'
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(content)}\r\n"
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
        assert fake.engine.submitted.wait(WAIT_SECONDS)
    assert all(stream.cancelled.wait(WAIT_SECONDS) for stream in fake.engine.streams)


def test_client_that_never_reads_loses_its_request_and_blocks_no_others(fake, url, client):
    """Unread events are bounded; the client gets the error once it reads."""
    fake.engine.texts, fake.engine.holds = (), True
    address = urlsplit(url)
    content = b'{"prompt": "a", "stream": true}'
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(content)}\r\n"
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
        assert fake.engine.submitted.wait(WAIT_SECONDS)
        stream = fake.engine.streams[0]
        num_sent = 0
        while not stream.is_cancelled:
            step_is_out = threading.Event()
            publish([(stream, TokenEvent("token" * 100, number)) for number in range(num_sent, num_sent + 100)])
            stream.loop.call_soon_threadsafe(step_is_out.set)
            assert step_is_out.wait(WAIT_SECONDS)
            num_sent += 100
        fake.engine.texts, fake.engine.holds = ("Hello",), False
        assert client.completions.create(model=MODEL, prompt="b").choices[0].text == "Hello"
        reply = b"".join(iter(partial(connection.recv, 1 << 20), b""))
    assert reply.count(b'"index":0') <= num_sent - MAX_UNREAD
    assert b"1024 tokens of the reply were waiting to be read" in reply
    assert reply.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


@pytest.mark.slow
@pytest.mark.parametrize("num_events", [MAX_UNREAD, 2 * MAX_UNREAD])
def test_client_that_reads_gets_what_came_at_once(fake, client, num_events):
    """The bound on unread tokens is for each choice."""
    fake.engine.texts, fake.engine.max_model_len = ("a",) * MAX_UNREAD, 10 * MAX_UNREAD
    n = num_events // MAX_UNREAD
    chunks = list(client.completions.create(model=MODEL, prompt="Once", n=n, max_tokens=MAX_UNREAD, stream=True))
    assert len(chunks) == num_events
