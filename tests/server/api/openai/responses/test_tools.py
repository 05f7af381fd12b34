"""Tools of ``/v1/responses``: types that are left out, and namespaces."""

import pytest

from tests.chat_formats import FAMILIES
from tests.server.api.named_events import events_of

READ = {"type": "function", "name": "read", "parameters": {"type": "object", "properties": {}}}
FILES = {"type": "namespace", "name": "files", "description": "Files of the user.", "tools": [READ]}
CALL = '<tool_call>\n{"name": "files__read", "arguments": {}}\n</tool_call>'


@pytest.fixture
def respond(fake, post):
    """Ask a model that writes a call of a namespaced function."""
    fake.codec.chat_traits = FAMILIES["hermes"].traits
    fake.engine.texts = tuple(CALL)
    fake.engine.max_model_len = 1024
    return lambda **body: post("/v1/responses", {"input": "Tell me a story", **body})


def names(fake):
    """Return the names of the tools in the last prompt."""
    return [tool["function"]["name"] for tool in fake.codec.tools[-1]]


def test_functions_are_served_without_the_tools_beside_them(fake, respond):
    response = respond(tools=[{"type": "web_search"}, READ, {"type": "custom", "name": "patch", "format": {}}])
    assert response.status_code == 200
    assert names(fake) == ["read"]
    assert [tool["name"] for tool in response.json()["tools"]] == ["read"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_header_names_each_type_that_is_left_out_once(respond, stream):
    custom = {"type": "custom", "name": "patch"}
    tools = [{"type": "web_search"}, custom, {**FILES, "tools": [READ, custom]}]
    response = respond(tools=tools, stream=stream)
    assert response.headers["x-greenroom-ignored-tools"] == "web_search, custom"


def test_no_header_is_sent_if_all_tools_are_served(respond):
    assert "x-greenroom-ignored-tools" not in respond(tools=[READ, FILES]).headers


def test_types_that_are_left_out_are_logged_once(respond, caplog):
    for _ in range(2):
        respond(tools=[READ, {"type": "web_search"}, {"type": "image_generation"}])
    lines = [record.getMessage() for record in caplog.records if "Leaving out" in record.getMessage()]
    assert lines == [
        "Leaving out tools of the type 'web_search': this server has functions only.",
        "Leaving out tools of the type 'image_generation': this server has functions only.",
    ]


def test_a_call_of_a_tool_that_is_left_out_cannot_be_forced(respond):
    response = respond(tools=[{**FILES, "tools": []}], tool_choice="required")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tool_choice"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "others"),
    [
        ("web_search", []),
        ("custom", []),
        *((kind, [READ]) for kind in ("file_search", "code_interpreter", "computer", "computer_use_preview", "mcp")),
        ("web_fetch", [READ]),
    ],
)
def test_tools_that_the_request_relies_on_are_refused_by_name(fake, respond, kind, others):
    error = respond(tools=[*others, {"type": kind}]).json()["error"]
    assert error["param"] == "tools"
    assert error["message"].startswith(
        f"'tools' can't hold the type '{kind}', because this server runs no tools itself"
    )
    assert not fake.engine.streams


def test_functions_of_namespaces_have_joined_names_in_the_prompt(fake, respond):
    respond(tools=[READ, FILES, {**FILES, "name": "mcp__github__"}])
    assert names(fake) == ["read", "files__read", "mcp__github__read"]


def test_a_function_without_a_description_has_that_of_its_namespace(fake, respond):
    described = {**READ, "name": "write", "description": "Writes a file."}
    respond(tools=[{**FILES, "tools": [READ, described]}])
    descriptions = [tool["function"]["description"] for tool in fake.codec.tools[-1]]
    assert descriptions == ["Files of the user.", "Writes a file."]


def test_a_call_names_the_function_and_its_namespace(respond):
    (call,) = respond(tools=[FILES]).json()["output"]
    assert (call["type"], call["name"], call["namespace"]) == ("function_call", "read", "files")


def test_streamed_items_of_a_call_name_the_namespace(respond):
    items = [event["item"] for event in events_of(respond(tools=[FILES], stream=True)) if "item" in event]
    assert [(item["name"], item["namespace"]) for item in items] == [("read", "files")] * 2


def test_a_call_without_a_namespace_has_none(fake, respond):
    fake.engine.texts = tuple(CALL.replace("files__read", "read"))
    (call,) = respond(tools=[READ, FILES]).json()["output"]
    assert call["name"] == "read"
    assert "namespace" not in call


def test_an_earlier_call_has_the_joined_name_in_the_prompt(fake, respond):
    call = {"type": "function_call", "call_id": "1", "name": "read", "namespace": "files", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "1", "output": "text"}
    respond(tools=[FILES], input=[{"role": "user", "content": "Read"}, call, result])
    _, message, answer = fake.codec.conversations[-1]
    assert message["tool_calls"][0]["function"]["name"] == answer["name"] == "files__read"


def test_a_forced_function_is_found_in_its_namespace(fake, respond):
    response = respond(tools=[FILES], tool_choice={"type": "function", "name": "read"})
    assert response.status_code == 200
    assert "files__read" in fake.codec.grammars[-1].text


def test_the_response_repeats_namespaces(respond):
    (tool,) = respond(tools=[FILES]).json()["tools"]
    assert (tool["name"], [member["name"] for member in tool["tools"]]) == ("files", ["read"])


def test_tools_count_as_input_tokens(fake, post):
    body = {"input": "Tell me a story", "tools": [FILES, {"type": "web_search"}]}
    response = post("/v1/responses/input_tokens", body)
    assert response.json() == {"object": "response.input_tokens", "input_tokens": 5}
    assert response.headers["x-greenroom-ignored-tools"] == "web_search"
    assert names(fake) == ["files__read"]
    assert not fake.engine.streams
