"""Stored responses, with the openai package: continued, read again, deleted."""

from __future__ import annotations

import asyncio

import openai
import pytest

from server.api.core.access.api_keys import KeyRing, Keys
from server.api.core.replies.response_store import ResponseStore
from server.engine.interface import GenerationFailedError, RequestMemory
from tests.chat_formats import FAMILIES, SCHEMAS
from tests.server.api.fakes import MODEL

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TOOLS = [{"type": "function", "name": name, "parameters": schema, "strict": None} for name, schema in SCHEMAS.items()]
TEXT = "Once upon a time"


@pytest.fixture
def stored(fake, tmp_path):
    fake.service.response_store = ResponseStore(tmp_path, 1 << 20, 1000.0)
    fake.engine.max_model_len = 4096
    yield fake
    fake.service.response_store.close()


@pytest.fixture
def client(stored, url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="ann", max_retries=0) as client:
        yield client


@pytest.fixture
def create(client):
    return lambda **body: client.responses.create(**{"model": MODEL, "input": "Tell me a story", **body})


def streamed(client, **body):
    with client.responses.stream(model=MODEL, **body) as stream:
        return stream.get_final_response()


@pytest.mark.slow
@pytest.mark.parametrize("streams", [False, True])
def test_a_conversation_with_reasoning_and_a_call_goes_on(stored, client, create, streams):
    stored.codec.chat_traits = FAMILIES["hermes"].traits
    stored.engine.texts = ("<think>", "Rain?", "</think>", "I look.", "\n", *CALL)
    ask = (lambda **body: streamed(client, **body)) if streams else create
    first = ask(input="Rain?", tools=TOOLS)
    call = first.output[-1]
    stored.engine.texts = ("No", " rain.")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "no"}
    second = ask(input=[result], tools=TOOLS, previous_response_id=first.id)
    ask(input="Sure?", previous_response_id=second.id, instructions="Be brief")
    assert second.previous_response_id == first.id
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    assert stored.codec.conversations[-1] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "Rain?"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [{"id": call.call_id, "type": "function", "function": function}],
            **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "Rain?"),
        },
        {"role": "tool", "content": "no", "tool_call_id": call.call_id, "name": "get_weather"},
        {"role": "assistant", "content": "No rain."},
        {"role": "user", "content": "Sure?"},
    ]


def test_instructions_are_those_of_the_last_request(stored, create):
    first = create(instructions="Be brief")
    create(input="More", previous_response_id=first.id)
    assert [message["role"] for message in stored.codec.conversations[-1]] == ["user", "assistant", "user"]


def test_a_response_is_read_again_as_it_was(client, create):
    response = create(metadata={"case": "1"}, max_output_tokens=3)
    assert (response.store, response.status) == (True, "incomplete")
    assert client.responses.retrieve(response.id) == response


def test_a_deleted_response_is_gone(client, create):
    response = create()
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError, match=response.id):
        client.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError, match="must be the 'id' of a stored response") as error:
        create(previous_response_id=response.id)
    assert (error.value.code, error.value.param) == ("previous_response_not_found", "previous_response_id")


def test_input_items_have_ids_and_pages(client, create):
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    said = [{"role": "user", "content": "a"}, call, {"type": "function_call_output", "call_id": "c", "output": "b"}]
    response = create(input=said)
    items = [*client.responses.input_items.list(response.id, limit=2, order="asc")]  # the package asks for all pages
    assert [item.type for item in items] == ["message", "function_call", "function_call_output"]
    assert items[0].content[0].text == "a"
    assert [item.id for item in client.responses.input_items.list(response.id)] == [item.id for item in items[::-1]]
    with pytest.raises(openai.BadRequestError, match="'after' must be the 'id' of an input item, got 'x'"):
        client.responses.input_items.list(response.id, after="x")


def test_a_text_is_an_input_item(client, create):
    (item,) = client.responses.input_items.list(create().id)
    assert (item.role, item.content[0].type, item.content[0].text) == ("user", "input_text", "Tell me a story")


def test_what_is_not_to_be_stored_is_not(client, create):
    response = create(store=False)
    assert response.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_a_response_that_failed_is_not_stored(stored, client, create):
    stored.engine.failure = GenerationFailedError("an expert can't be read")
    with pytest.raises(openai.InternalServerError):
        create()
    events = [*create(stream=True)]
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(events[-1].response.id)


@pytest.mark.parametrize("streams", [False, True])
def test_a_response_that_can_not_be_stored_says_so(stored, client, create, streams):
    stored.service.response_store.close()
    response = streamed(client, input="a") if streams else create()
    assert (response.output_text, response.store) == (TEXT, False)


def test_responses_belong_to_the_key_that_made_them(stored, client, create):
    stored.service.keys = Keys(KeyRing(["ann", "bob"]))
    response = create()
    other = client.with_options(api_key="bob")
    with pytest.raises(openai.NotFoundError):
        other.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError, match="another key's"):
        other.responses.create(model=MODEL, input="a", previous_response_id=response.id)
    assert client.responses.retrieve(response.id).id == response.id


def test_the_tokens_of_a_continued_conversation_are_counted(client, create):
    first = create()
    count = client.responses.input_tokens.count(model=MODEL, input="More words", previous_response_id=first.id)
    assert count.input_tokens == len(f"Tell me a story {TEXT} More words".split()) + 1


def test_the_store_is_used_off_the_event_loop(stored, create, monkeypatch):
    threads = []
    for name in ("save", "conversation"):
        method = getattr(ResponseStore, name)

        def watched(*args, method=method):
            threads.append(asyncio._get_running_loop())
            return method(*args)

        monkeypatch.setattr(ResponseStore, name, watched)
    [*create(stream=True, previous_response_id=create().id)]
    assert threads == [None] * 3


def test_an_earlier_conversation_counts_as_memory_of_the_request(stored, client, create):
    first = create(input="word " * 2000)
    stored.service.model.memory = RequestMemory(lambda: 20_000)
    with pytest.raises(openai.BadRequestError, match="The earlier conversation") as error:
        create(previous_response_id=first.id)
    assert error.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError, match="The stored response"):
        client.responses.retrieve(first.id)


def test_a_server_without_a_store_says_how_to_get_one(ask, post):
    sentence = "this server stores no responses: start it with --response-store"
    continued = post("/v1/responses", {"input": "a", "previous_response_id": "resp_1"})
    assert (continued.status_code, sentence in continued.json()["error"]["message"]) == (400, True)
    for method, path in (
        ("GET", "/v1/responses/a"),
        ("DELETE", "/v1/responses/a"),
        ("GET", "/v1/responses/a/input_items"),
    ):
        response = ask(method, path)
        assert (response.status_code, sentence in response.json()["error"]["message"]) == (404, True)
