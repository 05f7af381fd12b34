"""Routes that a dialect has and this server has not, with the unmodified packages."""

import io

import anthropic
import openai
import pytest

from server.api.core.access.api_keys import KeyRing, Keys

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
