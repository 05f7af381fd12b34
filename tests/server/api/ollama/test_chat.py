"""``/api/chat`` and ``/api/generate``, in-process: translation of the request, and what is refused."""

from __future__ import annotations

import json

import pytest

from server.engine.interface import GenerationFailedError, QueueFullError
from tests.chat_formats import FAMILIES
from tests.server.api.openai.test_experts import GREENROOM

MESSAGES = [{"role": "user", "content": "Tell me a story"}]
DURATIONS = {"total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}


@pytest.fixture
def chat(post):
    return lambda **body: post("/api/chat", {"messages": MESSAGES, "stream": False, **body})


@pytest.fixture
def generate(post):
    return lambda **body: post("/api/generate", {"prompt": "Once upon", "stream": False, **body})


@pytest.fixture
def thinker(fake):
    """A server whose model reasons."""
    fake.codec.chat_traits = FAMILIES["hermes"].traits
    return fake


def sampling_of(fake):
    return fake.engine.requests[-1].sampling


def lines_of(response):
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def test_a_complete_chat_has_ollamas_form(chat):
    reply = chat(model="org/tiny").json()
    assert reply.pop("created_at").endswith("Z")
    assert all(reply.pop(name) >= 0 for name in DURATIONS)
    assert reply == {
        "model": "org/tiny",
        "message": {"role": "assistant", "content": "Once upon a time"},
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 5,
        "eval_count": 5,
        "greenroom": GREENROOM,
    }


def test_a_chat_is_streamed_unless_the_request_says_otherwise(chat):
    lines = lines_of(chat(stream=None))
    assert [line["message"]["content"] for line in lines] == ["Once", " upon", " a", " time", ""]
    assert [line["done"] for line in lines] == [False, False, False, False, True]
    assert lines[-1]["eval_count"] == 5


def test_a_prompt_is_the_message_of_the_user(fake, generate):
    assert generate(system="Be brief").json()["response"] == "Once upon a time"
    assert fake.codec.conversations == [
        [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Once upon"}]
    ]


def test_a_raw_prompt_goes_without_the_template(fake, generate):
    assert generate(raw=True).json()["response"] == "Once upon a time"
    assert fake.codec.conversations == []
    assert fake.engine.requests[0].prompt_ids == (4, 4)


def test_options_are_sampling_parameters(fake, chat):
    options = {"temperature": 0.5, "num_predict": 9, "top_k": 7, "top_p": 0.25, "min_p": 0.125, "seed": 3}
    penalties = {"repeat_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.75}
    chat(options={**options, **penalties, "stop": ["END"], "logit_bias": {"5": 1}})
    sampling = sampling_of(fake)
    assert (sampling.temperature, sampling.max_tokens, sampling.top_k, sampling.top_p) == (0.5, 9, 7, 0.25)
    assert (sampling.min_p, sampling.seed, sampling.stop) == (0.125, 3, ("END",))
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.5, 0.5, 0.75)
    assert sampling.logit_bias == ((5, 1.0),)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
@pytest.mark.parametrize("num_predict", [-2, -1, 0, 1000])
def test_an_answer_is_as_long_as_fits(fake, post, path, num_predict):
    post(path, {"messages": MESSAGES, "prompt": "Tell me a story", "options": {"num_predict": num_predict}})
    assert sampling_of(fake).max_tokens == 64 - 5


def test_a_raw_answer_is_as_long_as_fits(fake, generate):
    generate(raw=True)
    assert sampling_of(fake).max_tokens == 62


def test_a_seed_of_minus_one_is_random(fake, chat):
    chat(options={"seed": -1})
    assert sampling_of(fake).seed is None


def test_penalties_over_no_tokens_are_off(fake, chat):
    chat(options={"repeat_last_n": 0, "repeat_penalty": 1.5, "presence_penalty": 1})
    assert not sampling_of(fake).has_penalties


def test_options_without_effect_are_logged_with_the_reason(chat, caplog):
    for _ in range(2):
        assert chat(keep_alive="5m", options={"num_ctx": 4096, "unheard_of": 1}).status_code == 200
    assert [record.getMessage() for record in caplog.records if "Ignoring" in record.getMessage()] == [
        "Ignoring the field 'keep_alive' of a request body: the model stays in memory until the server stops.",
        (
            "Ignoring the field 'options.num_ctx' of a request body: the context length is the same for all requests, "
            "that of --max-model-len."
        ),
        "Ignoring the unknown field 'options.unheard_of' of a request body.",
    ]


@pytest.mark.parametrize(("asked", "kind"), [("json", "json_object"), ({"type": "object"}, "json_schema")])
@pytest.mark.parametrize("raw", [False, True])
def test_a_format_is_enforced(fake, generate, asked, kind, raw):
    generate(format=asked, raw=raw)
    assert [spec.kind for spec in fake.codec.grammars] == [kind]


@pytest.mark.parametrize(
    ("think", "options"),
    [
        (False, {"enable_thinking": False, "thinking": False}),
        (True, {"enable_thinking": True, "thinking": True}),
        ("max", {"reasoning_effort": "xhigh", "enable_thinking": True, "thinking": True}),
        (None, {}),
    ],
)
def test_templates_get_the_thinking_option(thinker, chat, think, options):
    chat(think=think)
    assert thinker.codec.options == [options]


def test_a_model_that_does_not_think_says_so(chat):
    response = chat(think=True)
    assert response.status_code == 400
    assert response.json() == {"error": "The model 'org/tiny' does not support thinking: leave out 'think'."}


def test_images_come_before_the_text_of_their_message(fake, chat):
    chat(messages=[{"role": "user", "content": "What?", "images": ["AAEC"]}])
    assert fake.engine.requests[0].media.inputs == (b"\0\1\2",)
    assert fake.codec.conversations[0][0]["content"] == [{"type": "image"}, {"type": "text", "text": "What?"}]


def test_a_last_message_of_the_assistant_is_continued(fake, chat):
    chat(messages=[*MESSAGES, {"role": "assistant", "content": "Once"}])
    assert fake.engine.requests[0].prompt_ids[-1] == len("Once")  # and not the token of a new turn


def test_logprobs_are_beside_the_text(generate):
    reply = generate(logprobs=True, top_logprobs=1).json()
    assert [each["token"] for each in reply["logprobs"]] == ["Once", " upon", "", " a", " time"]
    assert len(reply["logprobs"][0]["top_logprobs"]) == 1


@pytest.mark.parametrize(("path", "field"), [("/api/chat", "message"), ("/api/generate", "response")])
def test_a_request_without_a_prompt_finds_the_model_loaded(fake, post, path, field):
    reply = post(path, {"model": "org/tiny", "keep_alive": 0}).json()
    assert reply["done_reason"] == "load"
    assert field in reply
    assert not fake.engine.requests


@pytest.mark.parametrize("name", ["org/tiny", "org/tiny:latest", "", None])
def test_the_default_tag_of_a_name_may_be_written_or_left_out(chat, name):
    response = chat(model=name)
    assert response.status_code == 200
    assert response.json()["model"] == (name or "org/tiny")


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", None])
def test_bodies_need_no_content_type(ask, content_type):
    headers = {} if content_type is None else {"Content-Type": content_type}
    content = json.dumps({"messages": MESSAGES}).encode()
    assert ask("POST", "/api/chat", content=content, headers=headers).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "other"}, 404, "The model 'other' does not exist: this server serves 'org/tiny'."),
        ({"messages": "Hi"}, 400, "'messages'"),
        ({"messages": [{"role": "cook"}]}, 400, "'messages[0].role'"),
        ({"messages": [{"role": "user", "content": "a", "images": ["?"]}]}, 400, "is not valid base64"),
        ({"tools": [{"type": "function"}]}, 400, "'tools"),
        ({"format": "xml"}, 400, "'format' must be \"json\" or a JSON schema, got 'xml'."),
        ({"format": {"type": "object", "properties": {str(each): {} for each in range(2000)}}}, 400, "'format'"),
        ({"think": "often"}, 400, "'think"),
        ({"options": {"temperature": 3}}, 400, "'options.temperature'"),
        ({"options": {"top_p": -0.5}}, 400, "'options.top_p'"),
        ({"options": {"stop": [""]}}, 400, "'options.stop'"),
        ({"options": {"min_tokens": 99, "num_predict": 4}}, 400, "'options.min_tokens' is 99"),
        ({"options": {"logit_bias": {"x": 1}}}, 400, "'options.logit_bias'"),
        ({"top_logprobs": 3}, 400, "'top_logprobs' is allowed only with logprobs"),
    ],
)
def test_invalid_chats_are_refused_in_ollamas_form(fake, chat, body, status, message):
    response = chat(**body)
    assert response.status_code == status
    assert message in response.json()["error"]
    assert not fake.engine.requests


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"suffix": "end"}, "'suffix' can't be used, because this server fills no gaps in text"),
        ({"template": "{{ .Prompt }}"}, "'template' can't be used, because the model's own chat template is used"),
        ({"context": [1, 2]}, "'context' can't be used, because this server stores no conversations"),
        ({"raw": True, "system": "Be brief"}, "'raw' sends the prompt without the chat template"),
        ({"raw": True, "images": ["AAEC"]}, "'raw' sends the prompt without the chat template"),
        ({"prompt": "a " * 64}, "maximum context length is 64 tokens"),
        ({"prompt": "a " * 64, "raw": True}, "maximum context length is 64 tokens"),
    ],
)
def test_invalid_prompts_are_refused(fake, generate, body, message):
    response = generate(**body)
    assert response.status_code == 400
    assert message in response.json()["error"]
    assert not fake.engine.requests


def test_parts_of_prompts_that_ask_for_nothing_are_accepted(generate):
    assert generate(suffix="", template="", context=[], system="", images=[]).status_code == 200


def test_a_full_queue_is_429(fake, chat):
    fake.engine.refusals = {0: QueueFullError("full")}
    response = chat()
    assert (response.status_code, response.json()) == (429, {"error": "full"})
    assert "retry-after" in response.headers


def test_a_failure_after_the_first_token_is_the_last_line(fake, chat):
    fake.engine.failure = GenerationFailedError("an expert could not be read")
    assert lines_of(chat(stream=True))[-1] == {"error": "an expert could not be read"}
    assert all(stream.is_cancelled for stream in fake.engine.streams)
