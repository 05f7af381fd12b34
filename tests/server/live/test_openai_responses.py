"""``/v1/responses`` with the openai package: over a socket, from the real engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import openai
import pytest
from pydantic import BaseModel

from tests.server.engine.fakes import continuation
from tests.server.live.conftest import FakeServer
from tests.server.live.requests import ask, post

TEXT = continuation(b"user: Hello\nassistant: ", 12)
ASKED = {"model": "fake", "input": "Hello", "max_output_tokens": 12, "temperature": 0}


@pytest.fixture
def client(live: FakeServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{live.port}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_create(client: openai.OpenAI) -> None:
    response = client.responses.create(**ASKED, metadata={"case": "1"})
    assert response.output_text == TEXT
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (response.usage.input_tokens, response.usage.output_tokens) == (23, 12)
    assert response.metadata == {"case": "1"}


def test_a_stop_string_completes_it(client: openai.OpenAI) -> None:
    response = client.responses.create(**ASKED, extra_body={"stop": TEXT[5:8]})
    assert (response.output_text, response.status) == (TEXT[:5], "completed")


def test_conversations_continue_with_earlier_answers(client: openai.OpenAI) -> None:
    first = client.responses.create(**ASKED)
    conversation = [{"role": "user", "content": "Hello"}, *first.output, {"role": "user", "content": "And?"}]
    second = client.responses.create(**ASKED | {"input": conversation}, instructions="Be brief")
    prompt = f"system: Be brief\nuser: Hello\nassistant: {TEXT}\nuser: And?\nassistant: "
    assert second.output_text == continuation(prompt.encode(), 12)


def test_raw_stream(client: openai.OpenAI) -> None:
    events = list(client.responses.create(**ASKED, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TEXT
    assert events[0].response.id == events[-1].response.id
    assert events[-1].type == "response.incomplete"


def test_accumulated_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(**ASKED, extra_body={"stop": TEXT[5:8]}) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        response = stream.get_final_response()
    assert snapshots[-1] == response.output_text == TEXT[:5]
    assert response.status == "completed"


class Weather(BaseModel):
    """The schema of a reply."""

    is_sunny: bool


def test_parse(client: openai.OpenAI) -> None:
    """Structured output that follows a pydantic model, complete and streamed."""
    asked = {**ASKED, "max_output_tokens": 100, "text_format": Weather}
    assert isinstance(client.responses.parse(**asked).output_parsed, Weather)
    with client.responses.stream(**asked) as stream:
        parsed = [event.parsed for event in stream if event.type == "response.output_text.done"]
    assert isinstance(parsed[0], Weather)


def test_a_failure_after_the_first_token_is_reported(live: FakeServer, client: openai.OpenAI) -> None:
    def fail() -> None:
        if len(live.rig.model.steps) > 3:
            raise RuntimeError("the model broke")

    live.rig.model.before_step = fail
    events = list(client.responses.create(**ASKED, stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.code == "server_error"
    assert "failed to compute" in events[-1].response.error.message


def test_a_client_that_leaves_ends_its_request(live: FakeServer, client: openai.OpenAI) -> None:
    steps = threading.Semaphore(3)
    live.rig.model.before_step = lambda: steps.acquire(timeout=30)
    with client.responses.create(**ASKED | {"max_output_tokens": 4000}, stream=True) as stream:
        next(event for event in stream if event.type == "response.output_text.delta")
    client.close()
    live.wait_until_left()
    steps.release(4000)
    live.wait_until_idle()
    assert live.engine.statistics.finished == {"abort": 1}


def test_input_tokens_are_counted(client: openai.OpenAI) -> None:
    count = client.responses.input_tokens.count(model="fake", input="Hello", instructions="Be")
    assert (count.object, count.input_tokens) == ("response.input_tokens", 34)


def test_hosted_tools_are_refused_as_in_messages(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="'web_search', because this server runs no tools itself"):
        client.responses.create(**ASKED, tools=[{"type": "web_search"}])


def test_errors_name_the_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.responses.create(**ASKED, previous_response_id="resp_1")
    assert bad.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(**ASKED | {"model": "other"})
    assert missing.value.code == "model_not_found"


def test_it_ends_without_a_done_line(live: FakeServer) -> None:
    """OpenAI's stream has none either; the type of the last event marks the end."""
    answer = ask(live.port, post("/v1/responses", input="Hello", max_output_tokens=3, stream=True)).decode()
    assert "[DONE]" not in answer
    assert answer.count("event: response.incomplete") == 1
