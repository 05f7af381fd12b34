"""Reasoning, text and a call in one turn, in each dialect: with the unmodified packages, over a socket."""

import anthropic
import ollama
import openai
import pytest

from tests.chat_formats import SCHEMAS
from tests.server.api.fakes import MODEL

ASK = {"role": "user", "content": "Rain?"}
FUNCTIONS = [
    {"type": "function", "name": name, "parameters": schema, "strict": True} for name, schema in SCHEMAS.items()
]
TOOLS = [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]


@pytest.fixture
def openai_client(hermes, url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic_client(hermes, url):
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def ollama_client(hermes, url):
    with ollama.Client(url) as client:
        yield client


def conversation_of(call_id):
    """Return the messages for the template when the turn comes back with a tool result."""
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    return [
        ASK,
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [{"id": call_id, "type": "function", "function": function}],
            **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "Rain?"),
        },
        {"role": "tool", "content": "no", "tool_call_id": call_id, "name": "get_weather"},
    ]


@pytest.mark.parametrize("streams", [False, True])
def test_responses(hermes, openai_client, streams):
    asked = {"model": MODEL, "tools": FUNCTIONS}
    if streams:
        with openai_client.responses.stream(**asked, input=[ASK]) as stream:
            response = stream.get_final_response()
    else:
        response = openai_client.responses.create(**asked, input=[ASK])
    reasoning, message, call = response.output
    assert reasoning.content[0].text == "Rain?"
    assert message.content[0].text == response.output_text == "I look."
    assert (call.name, call.arguments) == ("get_weather", '{"city": "Paris"}')
    assert response.usage.output_tokens_details.reasoning_tokens == 2
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "no"}
    openai_client.responses.create(**asked, input=[ASK, *response.output, output])
    assert hermes.codec.conversations[-1] == conversation_of(call.call_id)


@pytest.mark.parametrize("streams", [False, True])
def test_messages(hermes, anthropic_client, streams):
    asked = {"model": MODEL, "tools": TOOLS, "max_tokens": 200}
    if streams:
        with anthropic_client.messages.stream(**asked, messages=[ASK]) as stream:
            message = stream.get_final_message()
    else:
        message = anthropic_client.messages.create(**asked, messages=[ASK])
    thinking, text, use = message.content
    assert (thinking.thinking, text.text, use.name, use.input) == ("Rain?", "I look.", "get_weather", {"city": "Paris"})
    assert message.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "no"}
    said = [ASK, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    anthropic_client.messages.create(**asked, messages=said)
    assert hermes.codec.conversations[-1] == conversation_of(use.id)


@pytest.mark.parametrize("streams", [False, True])
def test_ollamas_chats(hermes, ollama_client, streams):
    def get_weather(city: str) -> str:
        """Tell the weather."""
        return "no"

    reply = ollama_client.chat(MODEL, [ASK], tools=[get_weather], stream=streams)
    messages = [part.message for part in reply] if streams else [reply.message]
    assert "".join(message.thinking or "" for message in messages) == "Rain?"
    assert "".join(message.content for message in messages) == "I look."
    (call,) = [call for message in messages for call in message.tool_calls or ()]
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Paris"})
    turn = ollama.Message(role="assistant", content="I look.", thinking="Rain?", tool_calls=[call])
    result = {"role": "tool", "tool_name": "get_weather", "content": get_weather("Paris")}
    ollama_client.chat(MODEL, [ASK, turn, result])
    assert hermes.codec.conversations[-1] == conversation_of("call_0")


@pytest.mark.slow
@pytest.mark.parametrize("streams", [False, True])
def test_the_packages_tool_runner_works(hermes, anthropic_client, streams):
    """The package asks the server to store the conversation, and sends it complete when the server refuses."""
    cities = []

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Tell the weather.

        Args:
            city: where.

        """
        cities.append(city)
        hermes.engine.texts = ("No", " rain.")
        return "no"

    runner = anthropic_client.beta.messages.tool_runner(
        model=MODEL, max_tokens=200, tools=[get_weather], messages=[ASK], stream=streams
    )
    replies = [reply.get_final_message() if streams else reply for reply in runner]
    assert cities == ["Paris"]
    assert replies[-1].content[-1].text == "No rain."
    assert hermes.codec.conversations[-1] == conversation_of(replies[0].content[-1].id)


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False, "thinking": False}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"enable_thinking": True, "thinking": True}),
        (
            {"output_config": {"effort": "max"}},
            {"reasoning_effort": "xhigh", "enable_thinking": True, "thinking": True},
        ),
        ({}, {}),
    ],
)
def test_templates_get_the_thinking_option_of_a_message(hermes, anthropic_client, asked, options):
    anthropic_client.messages.create(model=MODEL, max_tokens=8, messages=[ASK], **asked)
    assert hermes.codec.options == [options]


def test_templates_get_the_effort_of_a_response(hermes, openai_client):
    openai_client.responses.create(model=MODEL, input=[ASK], reasoning={"effort": "low", "summary": "auto"})
    assert hermes.codec.options == [{"reasoning_effort": "low", "enable_thinking": True, "thinking": True}]


def test_images_come_to_the_model(hermes, openai_client, anthropic_client):
    """Images in tool results count, too."""
    shown = {"type": "input_image", "image_url": "data:image/png;base64,AAEC", "detail": "auto"}
    openai_client.responses.create(model=MODEL, input=[{"role": "user", "content": [shown]}])
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAEC"}}
    use = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [block]}
    said = [ASK, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result, block]}]
    anthropic_client.messages.create(model=MODEL, max_tokens=8, messages=said)
    assert [request.media.inputs for request in hermes.engine.requests] == [(b"\0\1\2",), (b"\0\1\2",) * 2]
    assert [message["role"] for message in hermes.codec.conversations[-1]] == ["user", "assistant", "tool", "user"]
