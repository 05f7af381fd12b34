"""Ollama's API with the ollama package: over a socket, from the real engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import ollama
import pytest
from pydantic import BaseModel

from server.api.core.access.api_keys import KeyRing, Keys
from server.api.core.service.service import Service
from server.engine.text.codec import Codec
from tests.byte_tokenizer import byte_codec
from tests.chat_formats import FAMILIES
from tests.server.engine.fakes import Rig, continuation
from tests.server.live.conftest import FakeServer, serving_rig

HELLO = [{"role": "user", "content": "Hello"}]
TEXT = continuation(b"user: Hello\nassistant: ", 12)
GREEDY = {"temperature": 0, "num_predict": 12}


def client_of(server: FakeServer, **headers: str) -> ollama.Client:
    return ollama.Client(f"http://127.0.0.1:{server.port}", headers=headers)


@pytest.fixture
def client(live: FakeServer) -> Iterator[ollama.Client]:
    with client_of(live) as client:
        yield client


def test_chat(client: ollama.Client) -> None:
    reply = client.chat("fake", HELLO, options=GREEDY)
    assert (reply.message.content, reply.done_reason) == (TEXT, "length")
    assert (reply.prompt_eval_count, reply.eval_count) == (23, 12)
    assert 0 < reply.prompt_eval_duration + reply.eval_duration <= reply.total_duration


def test_streamed_chat(client: ollama.Client) -> None:
    parts = list(client.chat("fake:latest", HELLO, options=GREEDY, stream=True))
    assert "".join(part.message.content for part in parts) == TEXT
    assert [part.done for part in parts] == [False] * 12 + [True]
    assert parts[-1].eval_count == 12


def test_generate(client: ollama.Client) -> None:
    assert client.generate("fake", "Hello", options=GREEDY).response == TEXT
    raw = client.generate("fake", "Hello", raw=True, options=GREEDY)
    assert raw.response == continuation(b"Hello", 12)


def test_a_stop_ends_the_answer(client: ollama.Client) -> None:
    reply = client.chat("fake", HELLO, options={**GREEDY, "stop": [TEXT[5:8]]})
    assert (reply.message.content, reply.done_reason) == (TEXT[:5], "stop")


class Weather(BaseModel, extra="forbid"):
    """The schema of an answer."""

    is_sunny: bool


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_follows_a_schema(client: ollama.Client, streams: bool) -> None:
    asked = {"format": Weather.model_json_schema(), "options": {"temperature": 0}}
    if streams:
        text = "".join(part.message.content for part in client.chat("fake", HELLO, stream=True, **asked))
    else:
        text = client.chat("fake", HELLO, **asked).message.content
    assert Weather.model_validate_json(text)


def test_embeddings(client: ollama.Client) -> None:
    found = client.embed("fake", ["one", "three"])
    assert [len(vector) for vector in found.embeddings] == [3, 3]
    assert found.prompt_eval_count == 8
    assert client.embeddings("fake", "one").embedding == pytest.approx(found.embeddings[0])
    assert len(client.embed("fake", "one", dimensions=2).embeddings[0]) == 2
    assert client.embed("fake", "").embeddings == []


def test_an_input_is_cut_to_the_context_unless_the_client_forbids_it(codec: Codec) -> None:
    with serving_rig(Rig(num_blocks=4), codec) as small, client_of(small) as client:
        limit = small.engine.max_model_len
        assert client.embed("fake", "a" * 2 * limit).prompt_eval_count == limit
        with pytest.raises(ollama.ResponseError, match="maximum context length") as error:
            client.embed("fake", "a" * 2 * limit, truncate=False)
        assert error.value.status_code == 400


def test_models_are_listed_and_shown(client: ollama.Client) -> None:
    (listed,) = client.list().models
    (running,) = client.ps().models
    assert listed.model == running.model == "fake:latest"
    assert client.show(listed.model).capabilities == ["completion"]


def test_errors_are_those_of_the_package(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match=r"'options\.temperature'") as bad:
        client.chat("fake", HELLO, options={"temperature": 3})
    assert bad.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="does not exist") as missing:
        list(client.chat("other", HELLO, stream=True))
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="does not download models") as refused:
        client.pull("llama3")
    assert refused.value.status_code == 501


def test_a_failure_after_the_first_token_is_raised(live: FakeServer, client: ollama.Client) -> None:
    def fail() -> None:
        if len(live.rig.model.steps) > 3:
            raise RuntimeError("the model broke")

    live.rig.model.before_step = fail
    told: list[str] = []
    with pytest.raises(ollama.ResponseError, match="failed to compute"):
        told.extend(part.message.content for part in client.chat("fake", HELLO, options=GREEDY, stream=True))
    assert told
    assert TEXT.startswith("".join(told))


def test_a_client_that_leaves_ends_its_request(live: FakeServer, client: ollama.Client) -> None:
    steps = threading.Semaphore(12)  # some for the prompt, and bytes that may be parts of a character
    live.rig.model.before_step = lambda: steps.acquire(timeout=30)
    stream = client.chat("fake", HELLO, stream=True)
    next(stream)
    stream.close()
    client.close()
    live.wait_until_left()
    steps.release(4000)
    live.wait_until_idle()
    assert live.engine.statistics.finished == {"abort": 1}


def test_a_key_is_required(codec: Codec) -> None:
    service = Service("1", keys=Keys(users=KeyRing(["secret"])))
    with serving_rig(Rig(), codec, service=service) as locked:
        with client_of(locked, Authorization="Bearer secret") as client:
            assert client.list().models
        with client_of(locked) as client:
            for call in (client.list, client.ps, lambda: client.chat("fake", HELLO), lambda: client.delete("fake")):
                with pytest.raises(ollama.ResponseError, match="has no API key") as error:
                    call()
                assert error.value.status_code == 401


def test_a_model_whose_template_has_tools_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    template = replace(FAMILIES["hermes"], thinking="").template
    codec = byte_codec(tmp_path_factory.mktemp("hermes"), template)
    with serving_rig(Rig(), codec) as live, client_of(live) as client:
        assert client.show("fake").capabilities == ["completion", "tools"]
