"""Streams over a socket: the server stops generating when the reader closes the stream in any way."""

from __future__ import annotations

import asyncio
import gc

import httpx
import pytest

from client import (
    APITimeoutError,
    AsyncClient,
    AuthenticationError,
    Client,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    StreamClosedError,
    StreamFailedError,
)
from client.retries import Retries
from server.api.core.access.api_keys import KeyRing, Keys
from server.engine.interface import GenerationFailedError, QueueFullError
from tests.client.conftest import AnyClient
from tests.server.api.fakes import MODEL, WAIT_SECONDS, FakeServer

TEXT = "Once upon a time"


def was_cancelled(fake: FakeServer) -> bool:
    return fake.engine.streams[-1].cancelled.wait(WAIT_SECONDS)


def test_complete_and_streamed_replies_are_equal(live_client: AnyClient) -> None:
    complete = live_client("complete", "Tell me a story", n=2, max_tokens=5, logprobs=1)
    _, streamed = live_client.stream("stream", "Tell me a story", n=2, max_tokens=5, logprobs=1)
    assert [choice.text for choice in complete.choices] == [TEXT] * 2
    assert streamed.choices == complete.choices
    assert streamed.usage == complete.usage
    chat = live_client("chat", "Tell me a story", logprobs=True, top_logprobs=1)
    _, streamed_chat = live_client.stream("stream_chat", "Tell me a story", logprobs=True, top_logprobs=1)
    assert (chat.text, chat.message) == (TEXT, {"role": "assistant", "content": TEXT})
    assert streamed_chat.choices == chat.choices


def test_models_health_and_metrics_of_a_server(live_client: AnyClient, fake: FakeServer) -> None:
    fake.service.metrics = lambda: b"# TYPE greenroom_num_requests_running gauge\ngreenroom_num_requests_running 3.0\n"
    [model] = live_client("models")
    assert (model.id, model.max_model_len) == (MODEL, 64)
    assert live_client("health").is_ok
    assert live_client("metrics").total("num_requests_running") == 3
    fake.service.is_draining = True
    assert live_client("ready").status == "draining"


def test_keys_give_access_to_their_routes(live_client: AnyClient, fake: FakeServer) -> None:
    fake.service.keys = Keys(KeyRing(["user"]), KeyRing(["admin"]))
    assert live_client("complete", "Once", client={"api_key": "user"}).text == TEXT
    assert live_client("complete", "Once", client={"admin_api_key": "admin"}).text == TEXT
    with pytest.raises(AuthenticationError, match="no API key"):
        live_client("complete", "Once")
    with pytest.raises(PermissionDeniedError, match="send an admin key"):
        live_client("experts", client={"api_key": "user"})
    with pytest.raises(NotFoundError, match="no experts"):  # access is granted, but the fake has no experts
        live_client("experts", client={"api_key": "user", "admin_api_key": "admin"})


def test_refusals_are_raised_before_the_first_token(live_client: AnyClient, fake: FakeServer) -> None:
    with pytest.raises(NotFoundError) as missing:
        live_client.stream("stream", "Once", model="other")
    assert (missing.value.param, missing.value.code) == ("model", "model_not_found")
    assert missing.value.request_id
    fake.engine.refusals = {number: QueueFullError("full") for number in range(3)}
    with pytest.raises(RateLimitError):
        live_client.stream("stream", "Once")
    assert live_client.slept == [1.0, 1.0]  # the server's Retry-After


def test_a_failure_is_raised_after_the_tokens_before_it(url: str, fake: FakeServer) -> None:
    fake.engine.failure = GenerationFailedError("expert 3 of layer 1 is damaged")
    with Client(url) as client:
        stream = client.stream("Once")
        with pytest.raises(StreamFailedError, match="expert 3 of layer 1 is damaged"):
            list(stream)
        assert stream.result.text == TEXT


def test_result_has_the_tokens_before_leaving_the_loop(live_client: AnyClient, fake: FakeServer) -> None:
    fake.engine.holds = True
    tokens, reply = live_client.stream("stream", "Once", take=2)
    assert len(tokens) == 2
    assert reply.text == "Once upon"
    assert reply.finish_reason is None


def test_breaking_out_of_the_loop_stops_the_server(url: str, fake: FakeServer) -> None:
    fake.engine.holds = True

    async def scenario() -> None:
        async with AsyncClient(url) as client:
            async for _ in client.stream("Once"):
                break
            assert await asyncio.to_thread(was_cancelled, fake)

    asyncio.run(scenario())
    with Client(url) as client:
        for _ in client.stream("Once"):
            break
        assert was_cancelled(fake)


def test_leaving_the_block_or_closing_stops_the_server(url: str, fake: FakeServer) -> None:
    fake.engine.holds = True
    with Client(url) as client:
        with client.stream("Once") as stream:
            assert next(iter(stream)).text == "Once"
        assert was_cancelled(fake)
        stream.close()
        with pytest.raises(StreamClosedError):
            next(iter(stream))
        unread = client.stream_chat("Hi").__enter__()
        unread.close()
        assert was_cancelled(fake)


def test_an_exception_in_the_loop_stops_the_server(url: str, fake: FakeServer) -> None:
    fake.engine.holds = True
    with Client(url) as client, pytest.raises(ZeroDivisionError):
        min(len(token.text) / 0 for token in client.stream("Once"))
    assert was_cancelled(fake)


def test_an_unread_stream_sends_no_request(url: str, fake: FakeServer) -> None:
    with Client(url) as client:
        client.stream("Once").close()
        client.stream("Once")
        gc.collect()
    assert fake.engine.streams == []


def test_a_stream_is_read_once(url: str) -> None:
    with Client(url) as client:
        stream = client.stream("Once")
        assert "".join(token.text for token in stream) == TEXT
        with pytest.raises(StreamClosedError, match="new stream"):
            list(stream)
        with pytest.raises(StreamClosedError), stream:
            pass


def test_a_long_pause_between_tokens_times_out(url: str, fake: FakeServer) -> None:
    fake.engine.holds = True
    with Client(url, timeout=httpx.Timeout(WAIT_SECONDS, read=0.2)) as client, pytest.raises(APITimeoutError):
        list(client.stream("Once"))


def test_cancelling_a_task_stops_the_server(url: str, fake: FakeServer) -> None:
    """Both while it reads a stream and while it waits for a complete reply."""
    fake.engine.holds = True

    async def read(client: AsyncClient, first: asyncio.Event) -> None:
        async for _ in client.stream("Once"):
            first.set()

    async def scenario() -> None:
        async with AsyncClient(url) as client:
            first = asyncio.Event()
            reading = asyncio.create_task(read(client, first))
            await first.wait()
            reading.cancel()
            await asyncio.wait([reading])
            assert reading.cancelled()
            assert await asyncio.to_thread(was_cancelled, fake)
            fake.engine.submitted.clear()
            waiting = asyncio.create_task(client.complete("Once"))
            assert await asyncio.to_thread(fake.engine.submitted.wait, WAIT_SECONDS)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert await asyncio.to_thread(was_cancelled, fake)

    asyncio.run(scenario())


def test_many_streams_at_once(url: str) -> None:
    async def read(client: AsyncClient) -> str:
        return "".join([token.text async for token in client.stream("Once")])

    async def scenario() -> list[str]:
        async with AsyncClient(url, retries=Retries(0)) as client:
            return await asyncio.gather(*(read(client) for _ in range(20)))

    assert asyncio.run(scenario()) == [TEXT] * 20
