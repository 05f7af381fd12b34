"""Samplers of other servers: replies name those that were ignored, in each dialect, with the unmodified packages."""

import json

import anthropic
import openai
import pytest

from tests.server.api.fakes import MODEL

HEADER = "X-Greenroom-Ignored-Fields"
ASK = [{"role": "user", "content": "Rain?"}]
SAMPLERS = {"mirostat": 2, "n_probs": 3, "typical_p": 1.0, "dry_multiplier": 0, "dry_base": 1.75}
IGNORED = ["mirostat", "n_probs"]
BODIES = {
    "/v1/chat/completions": {"messages": ASK},
    "/v1/completions": {"prompt": "Rain?"},
    "/v1/responses": {"input": "Rain?"},
    "/v1/messages": {"messages": ASK, "max_tokens": 9},
    "/api/chat": {"messages": ASK, "options": {}},
    "/api/generate": {"prompt": "Rain?", "raw": True, "options": {}},
}


@pytest.fixture(params=BODIES)
def path(request):
    return request.param


@pytest.fixture
def send(path, post):
    """Send sampling fields in one of the dialects."""

    def send(*, stream=False, **fields):
        body = {**BODIES[path], "stream": stream}
        return post(path, body | ({"options": fields} if "options" in body else fields))

    return send


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["chat", "completions", "responses"])
def test_openais_package_shows_what_was_ignored(fake, url, kind, stream):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        make, content = {
            "chat": (client.chat.completions.create, {"messages": ASK}),
            "completions": (client.completions.create, {"prompt": "Rain?"}),
            "responses": (client.responses.create, {"input": "Rain?"}),
        }[kind]
        reply = make(model=MODEL, **content, extra_body=SAMPLERS, stream=stream)
        first = next(iter([*reply])) if stream else reply
    shown = first.response if kind == "responses" and stream else first
    assert shown.model_extra["greenroom"] == {"ignored_fields": IGNORED}


@pytest.mark.parametrize("stream", [False, True])
def test_anthropics_package_shows_what_was_ignored(fake, url, stream):
    asked = {"model": MODEL, "max_tokens": 9, "messages": ASK, "extra_body": SAMPLERS}
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        if stream:
            with client.messages.stream(**asked) as events:
                message = events.get_final_message()
        else:
            message = client.messages.create(**asked)
    assert message.model_extra["greenroom"] == {"ignored_fields": IGNORED}


@pytest.mark.parametrize("stream", [False, True])
def test_the_last_line_of_ollamas_dialect_names_what_was_ignored(post, stream):
    lines = post("/api/chat", {"messages": ASK, "options": SAMPLERS, "stream": stream}).text.splitlines()
    assert json.loads(lines[-1])["greenroom"]["ignored_fields"] == IGNORED


@pytest.mark.parametrize("stream", [False, True])
def test_a_header_names_what_was_ignored(send, stream):
    assert send(**SAMPLERS, stream=stream).headers[HEADER] == "mirostat, n_probs"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"mirostat": 0, "mirostat_tau": 5.0},
        {"xtc_probability": 0.0, "xtc_threshold": 0.1},
        {"typical_p": 1, "tfs_z": 1.0, "top_n_sigma": -1, "dynatemp_range": 0, "min_keep": 0},
        {"n_probs": 0, "post_sampling_probs": True},
        {"repeat_last_n": 64},
        {"use_beam_search": False, "length_penalty": 2.0},
        {"mirostat": None},
        {"something": "unknown"},
    ],
)
def test_values_without_effect_are_not_named(chat, fields):
    response = chat(**fields)
    assert (response.status_code, HEADER in response.headers) == (200, False)
    assert "greenroom" not in response.json()


def test_a_window_of_penalties_is_named_beside_a_penalty(chat):
    assert chat(repeat_last_n=64, presence_penalty=0.5).headers[HEADER] == "repeat_last_n"


@pytest.mark.parametrize("name", ["n_predict", "num_predict", "max_new_tokens"])
def test_limits_of_other_servers_count(fake, send, path, name):
    response = send(**{name: 3})
    if "max_tokens" in BODIES[path]:
        assert response.headers[HEADER] == name
    else:
        assert fake.engine.requests[0].sampling.max_tokens == 3


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_response_takes_the_limits_of_other_routes(fake, post, name):
    reply = post("/v1/responses", {"input": "Rain?", name: 3}).json()
    assert (reply["max_output_tokens"], fake.engine.requests[0].sampling.max_tokens) == (3, 3)


def test_the_own_limit_counts_and_another_one_is_named(fake, complete):
    assert complete(max_tokens=5, n_predict=3).headers[HEADER] == "n_predict"
    assert HEADER not in complete(max_tokens=5, n_predict=5).headers
    assert [each.sampling.max_tokens for each in fake.engine.requests] == [5, 5]


@pytest.mark.parametrize("name", ["repeat_penalty", "repetition_penalty"])
def test_penalties_count_by_both_names(fake, send, name):
    assert HEADER not in send(**{name: 1.5}).headers
    assert fake.engine.requests[0].sampling.repetition_penalty == 1.5


def test_an_invalid_limit_is_named_as_it_was_sent(complete):
    assert complete(n_predict="many").json()["error"]["param"] == "n_predict"


def test_a_message_without_a_limit_is_told_anthropics_name(post):
    assert post("/v1/messages", {"messages": ASK}).json()["error"]["message"] == "'max_tokens' is required."


def test_strict_sampling_refuses_what_would_be_ignored(fake, send, path):
    fake.service.refuses_other_samplers = True
    response = send(**SAMPLERS)
    name = "'options.mirostat'" if path.startswith("/api") else "'mirostat'"
    assert response.status_code == 400
    assert f"{name} can't be used, because this server does not sample so" in response.text
    assert not fake.engine.requests


def test_strict_sampling_takes_values_without_effect(fake, chat):
    fake.service.refuses_other_samplers = True
    assert chat(mirostat=0, typical_p=1.0).status_code == 200
