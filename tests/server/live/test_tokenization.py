"""``/tokenize`` and ``/detokenize`` over a socket, with the bundled model's tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.engine.text.codec import Codec
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.locate import BUNDLED
from server.model.text.tokenizer import Tokenizer
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import FakeServer, serving_rig

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who wrote Hamlet?"}]


def post(live: FakeServer, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{live.port}{path}", json=body, timeout=30)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(FolderCheckpoint(BUNDLED))


@pytest.fixture(scope="module")
def live(tokenizer: Tokenizer) -> Iterator[FakeServer]:
    with serving_rig(Rig(num_blocks=2048), Codec(tokenizer)) as server:
        yield server


def test_a_text_has_the_same_tokens_as_a_prompt(live: FakeServer, tokenizer: Tokenizer) -> None:
    body = post(live, "/tokenize", prompt="To be, or not to be\n", model="fake").json()
    tokens = tokenizer.encode("To be, or not to be\n")
    assert body == {"count": len(tokens), "max_model_len": 8192, "tokens": tokens, "token_strs": None}


@pytest.mark.parametrize("adds", [True, False])
def test_special_tokens_are_added_if_they_are_wanted(
    adds: bool, live: FakeServer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(self: Tokenizer, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [1, 5] if add_special_tokens else [5]

    monkeypatch.setattr(Tokenizer, "encode", encode)
    assert post(live, "/tokenize", prompt="a", add_special_tokens=adds).json()["tokens"] == ([1, 5] if adds else [5])
    assert post(live, "/tokenize", prompt="a").json()["tokens"] == [1, 5]


def test_a_conversation_has_the_same_tokens_as_a_chat(live: FakeServer, tokenizer: Tokenizer) -> None:
    """A complete body of a chat is accepted, including its sampling parameters."""
    body = post(live, "/tokenize", messages=MESSAGES, temperature=0.5, max_tokens=3).json()
    assert body["tokens"] == tokenizer.encode_chat(MESSAGES)
    assert body["count"] == len(body["tokens"])


def test_the_assistants_turn_may_be_left_out(live: FakeServer, tokenizer: Tokenizer) -> None:
    whole = post(live, "/tokenize", messages=MESSAGES).json()["tokens"]
    part = post(live, "/tokenize", messages=MESSAGES, add_generation_prompt=False).json()["tokens"]
    assert part == whole[: len(part)]
    assert "assistant" in tokenizer.decode(whole[len(part) :], skip_special_tokens=False)


def test_tokens_may_come_with_their_names(live: FakeServer, tokenizer: Tokenizer) -> None:
    body = post(live, "/tokenize", messages=MESSAGES, return_token_strs=True).json()
    assert body["token_strs"] == tokenizer.names(body["tokens"])
    assert len(body["token_strs"]) == body["count"]


@pytest.mark.parametrize("text", ["", "a", "Grüße, 世界 \U0001f680\n\ttab  two", "x" * 20_000])
def test_text_comes_back_from_its_tokens(text: str, live: FakeServer) -> None:
    tokens = post(live, "/tokenize", prompt=text, add_special_tokens=False).json()["tokens"]
    assert post(live, "/detokenize", tokens=tokens).json() == {"prompt": text}


def test_special_tokens_are_written_out(live: FakeServer) -> None:
    tokens = post(live, "/tokenize", messages=MESSAGES).json()["tokens"]
    text = post(live, "/detokenize", tokens=tokens).json()["prompt"]
    assert "<|im_end|>" in text
    assert text.index("Be brief.") < text.index("Who wrote Hamlet?")


BOTH = "'prompt' or 'messages' is required, but not both."


@pytest.mark.parametrize(
    ("path", "body", "param", "sentence"),
    [
        ("/tokenize", {}, "prompt", BOTH),
        ("/tokenize", {"messages": []}, "prompt", BOTH),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt", BOTH),
        ("/tokenize", {"prompt": ["a"]}, "prompt", "'prompt': input should be a valid string, got ['a']."),
        (
            "/tokenize",
            {"messages": MESSAGES, "add_special_tokens": True},
            "add_special_tokens",
            "'add_special_tokens' is allowed only with 'prompt': a chat template adds its special tokens itself.",
        ),
        ("/detokenize", {}, "tokens", "'tokens' is required."),
        (
            "/detokenize",
            {"tokens": [-1]},
            "tokens[0]",
            "'tokens[0]': input should be greater than or equal to 0, got -1.",
        ),
        ("/detokenize", {"tokens": [0] * 131073}, "tokens", "'tokens' must hold no more than 131072 token ids"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]", "'tokens[0]': input should be a valid integer, got 'a'."),
        ("/detokenize", {"tokens": [1 << 30]}, "tokens", f"'tokens' holds token id {1 << 30}, which is not below 4096"),
    ],
)
def test_bad_bodies_are_named(path: str, body: dict[str, Any], param: str, sentence: str, live: FakeServer) -> None:
    answer = post(live, path, **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["message"].startswith(sentence)


@pytest.mark.parametrize(("path", "body"), [("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})])
def test_an_unknown_model_is_not_found(path: str, body: dict[str, Any], live: FakeServer) -> None:
    answer = post(live, path, model="another", **body)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
