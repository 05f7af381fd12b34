"""Texts that can't fit the model are refused before they are tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.engine.codec import Codec
from server.engine.request import PromptTooLongError
from server.model.tokenizer import Tokenizer
from tests.byte_tokenizer import save_byte_tokenizer


@pytest.fixture
def codec(tmp_path: Path) -> Codec:
    save_byte_tokenizer(tmp_path, special=("<end>",))
    return Codec(Tokenizer(tmp_path, max_tokens=10))


def test_a_text_longer_than_all_tokens_of_the_context_is_refused(codec: Codec) -> None:
    """The longest token has five characters, so fifty may be ten tokens."""
    assert codec.encode("<end>" * 10) == [256] * 10
    with pytest.raises(PromptTooLongError, match="the prompt has 51 characters, but no more than 50 fit") as error:
        codec.encode("a" * 51)
    assert error.value.param == "prompt"


def test_a_conversation_longer_than_that_is_refused(codec: Codec) -> None:
    assert len(codec.encode_chat([{"role": "user", "content": "a" * 30}]).token_ids) == 48
    with pytest.raises(PromptTooLongError) as error:
        codec.encode_chat([{"role": "user", "content": "a" * 40}])
    assert error.value.param == "messages"
