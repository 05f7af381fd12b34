"""``/v1/messages`` with the anthropic package: over a socket, from the real engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import anthropic
import pytest
from pydantic import BaseModel

from server.api.core.access.api_keys import KeyRing, Keys
from server.api.core.service.service import Service
from server.engine.text.codec import Codec
from tests.server.engine.fakes import Rig, continuation
from tests.server.live.conftest import FakeServer, serving_rig
from tests.server.live.requests import ask

HELLO = [{"role": "user", "content": "Hello"}]
TEXT = continuation(b"user: Hello\nassistant: ", 12)
GREEDY = {"temperature": 0}  # the package has no name for it
ASKED = {"model": "fake", "messages": HELLO, "max_tokens": 12, "extra_body": GREEDY}


@pytest.fixture
def client(live: FakeServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=f"http://127.0.0.1:{live.port}", api_key="none", max_retries=0) as client:
        yield client


def test_create(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**ASKED)
    assert message.content[0].text == TEXT
    assert (message.stop_reason, message.stop_sequence) == ("max_tokens", None)
    assert (message.usage.input_tokens, message.usage.output_tokens) == (23, 12)
    assert message.model == "fake"


def test_the_stop_sequence_that_ended_it_is_named(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**ASKED, stop_sequences=["Z", TEXT[5:8]])
    assert message.content[0].text == TEXT[:5]
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", TEXT[5:8])


def test_conversations_continue_with_earlier_answers(client: anthropic.Anthropic) -> None:
    first = client.messages.create(**ASKED)
    messages = [*HELLO, {"role": "assistant", "content": first.content}, {"role": "user", "content": "And?"}]
    second = client.messages.create(**ASKED | {"messages": messages}, system="Be brief")
    prompt = f"system: Be brief\nuser: Hello\nassistant: {TEXT}\nuser: And?\nassistant: "
    assert second.content[0].text == continuation(prompt.encode(), 12)


def test_stream(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**ASKED, stop_sequences=[TEXT[5:8]]) as stream:
        assert "".join(stream.text_stream) == TEXT[:5]
        message = stream.get_final_message()
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", TEXT[5:8])
    assert message.usage.input_tokens == 23
    assert message.usage.output_tokens == 8


def test_raw_stream(client: anthropic.Anthropic) -> None:
    events = list(client.messages.create(**ASKED, stream=True))
    assert events[0].type == "message_start"
    assert [event.type for event in events[-3:]] == ["content_block_stop", "message_delta", "message_stop"]


class Weather(BaseModel):
    """The schema of a message."""

    is_sunny: bool


def test_parse(client: anthropic.Anthropic) -> None:
    """Structured output that follows a pydantic model."""
    message = client.messages.parse(**ASKED | {"max_tokens": 100}, output_format=Weather)
    assert isinstance(message.parsed_output, Weather)


def test_tokens_are_counted(client: anthropic.Anthropic) -> None:
    assert client.messages.count_tokens(model="fake", messages=HELLO).input_tokens == 23
    assert client.messages.count_tokens(model="fake", messages=HELLO, system="Be").input_tokens == 34


def test_a_failure_after_the_first_token_is_raised(live: FakeServer, client: anthropic.Anthropic) -> None:
    def fail() -> None:
        if len(live.rig.model.steps) > 3:
            raise RuntimeError("the model broke")

    live.rig.model.before_step = fail
    told = []
    with client.messages.stream(**ASKED) as stream, pytest.raises(anthropic.APIStatusError) as error:
        told.extend(stream.text_stream)
    assert TEXT.startswith("".join(told))
    assert told
    assert error.value.type == "api_error"
    assert "failed to compute" in error.value.body["error"]["message"]


def test_a_client_that_leaves_ends_its_request(live: FakeServer, client: anthropic.Anthropic) -> None:
    steps = threading.Semaphore(3)
    live.rig.model.before_step = lambda: steps.acquire(timeout=30)
    with client.messages.stream(**ASKED | {"max_tokens": 4000}) as stream:
        next(stream.text_stream)
    client.close()
    live.wait_until_left()
    steps.release(4000)
    live.wait_until_idle()
    assert live.engine.statistics.finished == {"abort": 1}


def test_errors_are_those_of_the_package(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="'temperature'") as bad:
        client.messages.create(**ASKED | {"extra_body": {"temperature": 3}})
    assert bad.value.type == "invalid_request_error"
    assert bad.value.request_id == bad.value.body["request_id"]
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(**ASKED | {"model": "other"})
    assert missing.value.type == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="this server runs no tools itself"):
        client.messages.create(**ASKED, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    with pytest.raises(
        anthropic.BadRequestError, match="must be a block of 'text', 'image', 'document', 'tool_result'"
    ):
        client.messages.count_tokens(model="fake", messages=[{"role": "user", "content": [{"type": "video"}]}])


def test_a_key_is_required_and_accepted_in_the_header(codec: Codec) -> None:
    service = Service("1", keys=Keys(users=KeyRing(["secret"])))
    with serving_rig(Rig(), codec, service=service) as live:
        url = f"http://127.0.0.1:{live.port}"
        with anthropic.Anthropic(base_url=url, api_key="secret", max_retries=0) as client:
            assert client.messages.create(**ASKED).content[0].text == TEXT
        with anthropic.Anthropic(base_url=url, api_key="other", max_retries=0) as client:
            for call in (lambda: client.messages.create(**ASKED), lambda: client.messages.stream(**ASKED).__enter__()):
                with pytest.raises(anthropic.AuthenticationError) as error:
                    call()
                assert error.value.type == "authentication_error"
            with pytest.raises(anthropic.AuthenticationError):
                client.messages.count_tokens(model="fake", messages=HELLO)


def test_a_draining_server_refuses_requests(codec: Codec) -> None:
    service = Service("1", is_draining=True)
    with (
        serving_rig(Rig(), codec, service=service) as live,
        anthropic.Anthropic(base_url=f"http://127.0.0.1:{live.port}", api_key="none", max_retries=0) as client,
        pytest.raises(anthropic.ServiceUnavailableError) as error,
    ):
        client.messages.create(**ASKED)
    assert error.value.type == "overloaded_error"


def test_a_body_that_is_too_large_is_refused_by_its_header(live: FakeServer) -> None:
    head = "POST /v1/messages HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Type: application/json\r\n"
    answer = ask(live.port, f"{head}Content-Length: {1 << 30}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"type":"request_too_large"' in answer
