"""A checkpoint's tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from transformers import AutoTokenizer

from .errors import ModelError


class ChatTemplateError(ModelError):
    """The model has no chat template, or it refuses the messages."""


class Tokenizer:
    """Text to token ids and back, as the checkpoint defines it.

    Raises:
        ModelError: the folder has no tokenizer that transformers can read.
    """

    def __init__(self, folder: Path):
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
            lines = str(error).strip().splitlines()
            raise ModelError(f"{folder.name} has no usable tokenizer: {lines[0] if lines else error!r}") from error
        end = self._tokenizer.eos_token_id
        self.eos_token_ids: frozenset[int] = frozenset(() if end is None else (end,))

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text))

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """A conversation up to the assistant's turn.

        Raises:
            ChatTemplateError: there is no template, or it refuses the messages.
        """
        if self._tokenizer.chat_template is None:
            raise ChatTemplateError("the model has no chat template; use /v1/completions")
        try:
            text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError as error:
            raise ChatTemplateError(f"the model's chat template refuses the messages: {error}") from error
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, token_ids: list[int]) -> str:
        """Text without special tokens."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
