"""Texts that can't fit the model are refused before they are tokenised."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.engine.interface import PromptTooLongError
from server.engine.text.codec import Codec
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.text.tokenizer import Tokenizer
from tests.byte_tokenizer import save_byte_tokenizer


@pytest.fixture
def codec(tmp_path: Path) -> Codec:
    save_byte_tokenizer(tmp_path, special=("<end>",))
    return Codec(Tokenizer(FolderCheckpoint(tmp_path), max_tokens=10))


def test_a_text_longer_than_all_tokens_of_the_context_is_refused(codec: Codec) -> None:
    """The longest token has five characters, so fifty may be ten tokens."""
    assert codec.encode("<end>" * 10) == [256] * 10
    with pytest.raises(PromptTooLongError, match="the prompt has 101 characters, which need more than the 10") as error:
        codec.encode("a" * 101)
    assert error.value.param == "prompt"


def test_a_conversation_longer_than_that_is_refused(codec: Codec) -> None:
    assert len(codec.encode_chat([{"role": "user", "content": "a" * 30}]).token_ids) == 48
    with pytest.raises(PromptTooLongError) as error:
        codec.encode_chat([{"role": "user", "content": "a" * 90}])
    assert error.value.param == "messages"


@pytest.mark.parametrize(("text", "is_refused"), [("<a token of many characters>" * 4, False), ("a" * 81, True)])
def test_a_text_that_may_fit_is_tokenised_in_pieces(tmp_path: Path, text: str, is_refused: bool) -> None:
    save_byte_tokenizer(tmp_path, special=("<a token of many characters>",))
    codec = Codec(Tokenizer(FolderCheckpoint(tmp_path), max_tokens=10))
    if is_refused:
        with pytest.raises(PromptTooLongError):
            codec.encode(text)
    else:
        assert codec.encode(text) == [256] * 4
