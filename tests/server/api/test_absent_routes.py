"""Routes that this server has not: those of a dialect, with the unmodified packages; other servers'; unknown ones."""

import io
import re

import anthropic
import openai
import pytest

from server.api.core.access.api_keys import KeyRing, Keys
from server.other_servers import SAME, TABLES

OPENAI_CALLS = {
    "/v1/files": lambda client: client.files.create(file=io.BytesIO(b"{}"), purpose="batch"),
    "/v1/files/a": lambda client: client.files.retrieve("a"),
    "/v1/batches": lambda client: client.batches.list(),
    "/v1/audio/speech": lambda client: client.audio.speech.create(model="a", voice="ash", input="a"),
    "/v1/audio/transcriptions": lambda client: client.audio.transcriptions.create(model="a", file=io.BytesIO(b"a")),
    "/v1/realtime/client_secrets": lambda client: client.realtime.client_secrets.create(),
    "/v1/moderations": lambda client: client.moderations.create(input="a"),
    "/v1/images/generations": lambda client: client.images.generate(prompt="a"),
}


@pytest.fixture
def openai_client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.slow
@pytest.mark.parametrize(("path", "call"), OPENAI_CALLS.items(), ids=OPENAI_CALLS)
def test_openais_package_gets_the_path_and_what_to_use(openai_client, path, call):
    with pytest.raises(openai.NotFoundError) as error:
        call(openai_client)
    assert error.value.code == "unknown_url"
    assert f" {path}: this server " in error.value.message


ANTHROPIC_CALLS = {
    "/v1/messages/batches": lambda client: client.messages.batches.list(),
    "/v1/messages/batches/a/cancel": lambda client: client.messages.batches.cancel("a"),
    "/v1/files": lambda client: client.beta.files.list(),
}


@pytest.mark.parametrize(("path", "call"), ANTHROPIC_CALLS.items(), ids=ANTHROPIC_CALLS)
def test_anthropics_package_gets_its_own_form(url, path, call):
    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    with client, pytest.raises(anthropic.NotFoundError) as error:
        call(client)
    assert error.value.type == "not_found_error"
    assert f" {path}: this server " in str(error.value)


def test_an_absent_route_wants_a_key_like_others(fake, ask):
    fake.service.keys = Keys(KeyRing(["secret"]))
    assert ask("GET", "/v1/files").status_code == 401


ROUTES = {path: row.ours for rows in TABLES.values() for row in rows for path in row.paths}


def test_all_routes_of_other_servers_are_explained(ask):
    others = [path for path, ours in ROUTES.items() if ours != SAME]
    messages = [ask("POST", path).json()["error"]["message"] for path in others]
    assert [message.partition(" of ")[0] for message in messages] == [
        f"There is no POST {path}: it is a route" for path in others
    ]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/props", "it is a route of llama.cpp; here it is GET /v1/models: POST /api/show has the chat template."),
        ("/slots/0", "it is a route of llama.cpp; here it is GET /v1/requests: with an admin key."),
        ("/sleep", "it is a route of vLLM; it is absent here: stop the server to free its memory."),
        ("/generate", "it is a route of vLLM, SGLang and TGI; here it is /v1/completions or /v1/chat/completions."),
        ("/api/v0/chat/completions", "it is a route of LM Studio; here it is /v1/chat/completions."),
        ("/api/v0/system", "it is a route of LM Studio; here it is /v1: OpenAI's routes."),
    ],
)
def test_the_explanation_names_what_to_use(ask, path, message):
    assert ask("GET", path).json()["error"]["message"] == f"There is no GET {path}: {message}"


def test_routes_that_are_said_to_be_the_same_are_there(ask):
    same = [path for path, ours in ROUTES.items() if ours == SAME]
    assert "/ping" in same
    assert [path for path in same if ask("PUT", path).status_code != 405] == []


def test_paths_to_which_users_of_other_servers_are_sent_are_there(ask):
    told = {path for ours in ROUTES.values() for path in re.findall(r"/v1/[\w/]+|/[a-z_]+\b", ours)} - {"/v1"}
    assert "/v1/completions" in told
    assert {path for path in told if ask("GET", path).status_code == 404} == set()


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/v1/chat/completion", "did you mean /v1/chat/completions?"),
        ("/v1/v1/chat/completions", "did you mean /v1/chat/completions?"),
        ("/v1/model", "did you mean /v1/models?"),
        ("/" + "x" * 9999, "GET /openapi.json lists all routes."),
    ],
)
def test_an_unknown_path_gets_the_one_that_was_probably_meant(ask, path, hint):
    response = ask("POST", path)
    assert (response.status_code, response.json()["error"]["message"].rpartition(": ")[2]) == (404, hint)
    assert len(response.text) < 300


def test_a_wrong_method_gets_those_of_all_routes_of_the_path(ask):
    response = ask("DELETE", "/v1/chat/completions")
    assert response.json()["error"]["message"] == "There is no DELETE /v1/chat/completions: use POST."
    assert ask("PUT", "/ping").json()["error"]["message"] == "There is no PUT /ping: use GET or POST."
