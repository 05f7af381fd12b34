"""Logprobs in OpenAI's forms for chats and for completions, and echoed prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from server.api.core.json_text.parts import JsonList
from server.engine.interface import TextCodec, TokenLogprobs


def chat_logprobs(codec: TextCodec, tokens: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """Return the logprobs of a chat choice. ``bytes`` are exact; ``token`` has U+FFFD for bytes that are not UTF-8."""
    content = [
        _chat_token(codec, each.token_id, each.logprob)
        | {"top_logprobs": [_chat_token(codec, token_id, logprob) for token_id, logprob in each.top]}
        for each in tokens
    ]
    return {"content": content, "refusal": None}


def _chat_token(codec: TextCodec, token_id: int, logprob: float) -> dict[str, Any]:
    data = codec.token_bytes(token_id)
    return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}


def prompt_logprobs(codec: TextCodec, tokens: Sequence[TokenLogprobs]) -> JsonList:
    """Return the logprobs of a prompt's tokens in vLLM's form; the first token has none.

    ``rank`` is null for a token that is not among the likeliest that were asked for.
    """
    listed = JsonList([None])
    for each in tokens:
        listed.append(_prompt_token(codec, each))
    return listed


def _prompt_token(codec: TextCodec, each: TokenLogprobs) -> dict[str, Any]:
    ranks = {token_id: rank for rank, (token_id, _) in enumerate(each.top, start=1)}
    listed = {each.token_id: each.logprob} | dict(each.top)
    return {
        str(token_id): {
            "logprob": logprob,
            "rank": ranks.get(token_id),
            "decoded_token": codec.token_bytes(token_id).decode(errors="replace"),
        }
        for token_id, logprob in listed.items()
    }


@dataclass(frozen=True)
class Echo:
    """A prompt that precedes its completion."""

    text: str
    token_ids: Sequence[int]
    offsets: Sequence[int]  # offset of each token in the text

    @classmethod
    def of(cls, prompt: str | list[int], token_ids: Sequence[int], codec: TextCodec) -> "Echo":
        """Echo a text as it is, and token ids as their text with special tokens written out; may block.

        Special tokens that the tokenizer adds before a text have offset 0.
        """
        pieces = codec.pieces(token_ids)
        written = "".join(pieces)
        text = prompt if isinstance(prompt, str) else written
        num_before = len(written) - len(text) if written.endswith(text) else 0
        starts = accumulate(map(len, pieces[:-1]), initial=0)
        return cls(text, token_ids, [max(0, start - num_before) for start in starts])


class CompletionLogprobs:
    """The logprob lists of a completion.

    A token that is not UTF-8 by itself is written as ``bytes:`` and its bytes, as OpenAI does.
    """

    def __init__(self, codec: TextCodec):
        self._codec = codec
        self.tokens, self.token_logprobs = JsonList(), JsonList()
        self.top_logprobs, self.text_offset = JsonList(), JsonList()

    def add_first(self, echo: Echo) -> None:
        """Add the first token of a prompt, which has no logprob."""
        self.tokens.append(self._text(echo.token_ids[0]))
        self.token_logprobs.append(None)
        self.top_logprobs.append(None)
        self.text_offset.append(0)

    def add_prompt(self, echo: Echo, logprobs: Sequence[TokenLogprobs], first: int = 1) -> None:
        """Add tokens of a prompt, from the one numbered ``first`` on."""
        for number, each in enumerate(logprobs, start=first):
            self._add(each, echo.offsets[number])

    def add(self, logprobs: Sequence[TokenLogprobs], num_echoed: int) -> None:
        """Add tokens of a completion that follows ``num_echoed`` characters."""
        for each in logprobs:
            self._add(each, num_echoed + each.text_offset)

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.body().values())

    def body(self) -> dict[str, JsonList]:
        return {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }

    def _add(self, each: TokenLogprobs, offset: int) -> None:
        top: dict[str, float] = {}
        for token_id, logprob in (*each.top, (each.token_id, each.logprob)):
            top.setdefault(self._text(token_id), logprob)
        self.tokens.append(self._text(each.token_id))
        self.token_logprobs.append(each.logprob)
        self.top_logprobs.append(top)
        self.text_offset.append(offset)

    def _text(self, token_id: int) -> str:
        data = self._codec.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
