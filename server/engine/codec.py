"""The model's tokenizer as the HTTP surface sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.model.tokenizer import ChatTemplateError, Tokenizer

from .request import RequestRefusedError


class Codec:
    """A ``TextCodec`` over a tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        try:
            return self._tokenizer.encode_chat(messages)
        except ChatTemplateError as error:
            raise RequestRefusedError(str(error), "messages") from error
