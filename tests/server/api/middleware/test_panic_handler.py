"""A panic of a library is answered as any other fault of the server is, in the form of each dialect."""

import pytest

from tests.server.api.fakes import MODEL

USER = [{"role": "user", "content": "Tell me a story"}]


class Panic(BaseException):
    """As ``pyo3_runtime.PanicException``."""


@pytest.fixture
def panicking(fake, monkeypatch):
    """A codec whose library panics."""

    def panic(*arguments, **keywords):
        raise Panic("index out of bounds")

    for name in ("encode", "encode_chat", "compile_grammar"):
        monkeypatch.setattr(fake.codec, name, panic)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": USER}),
        ("/v1/chat/completions", {"messages": USER, "stream": True}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/completions", {"prompt": [1], "guided_regex": "a"}),
        ("/v1/responses", {"input": "a"}),
        ("/tokenize", {"prompt": "a"}),
    ],
)
def test_openai(panicking, post, path, fields):
    answer = post(path, fields)
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"


def test_anthropic(panicking, post):
    answer = post("/v1/messages", {"model": MODEL, "max_tokens": 5, "messages": USER})
    assert answer.status_code == 500
    assert (answer.json()["type"], answer.json()["error"]["type"]) == ("error", "api_error")


@pytest.mark.parametrize(("path", "fields"), [("/api/chat", {"messages": USER}), ("/api/generate", {"prompt": "a"})])
def test_ollama(panicking, post, path, fields):
    answer = post(path, {"model": MODEL, **fields})
    assert answer.status_code == 500
    assert isinstance(answer.json()["error"], str)
