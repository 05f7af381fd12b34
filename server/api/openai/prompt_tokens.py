"""Tokens of ``bad_words``, and prompts that ``truncate_prompt_tokens`` cuts."""

from collections.abc import Sequence

from server.api.openai.bodies import GenerationBody
from server.engine.interface import TextCodec

USUAL_CHARACTERS = 8  # at most per token, usually


def bad_word_ids(words: Sequence[str], codec: TextCodec) -> frozenset[tuple[int, ...]]:
    """Encode each word as it is at the beginning of a text and within one, as vLLM does; may block."""
    found = set[tuple[int, ...]]()
    for word in words:
        first = codec.encode(word.lstrip(), add_special_tokens=False)
        later = codec.encode(" " + word.lstrip(), add_special_tokens=False)
        found.add(tuple(first))
        if later and len(later) == len(first) and later[0] != first[0]:
            found.add(tuple(later))
    return frozenset(found - {()})


def prompt_limit(body: GenerationBody, max_model_len: int) -> int | None:
    """Return how many of the last tokens of a prompt are used; None for all."""
    limit = body.truncate_prompt_tokens
    if limit == -1:
        requested = 1 if body.is_unlimited else body.requested_max_tokens or body.default_max_tokens or 1
        return max(1, max_model_len - requested)
    return limit


def last_tokens(text: str, limit: int, max_model_len: int, codec: TextCodec) -> list[int]:
    """Encode the end of a text, even if all of it is too long to be encoded; may block."""
    most = max_model_len * USUAL_CHARACTERS
    if len(text) > most:
        tokens = codec.encode(text[-most:], add_special_tokens=False)
        if len(tokens) > limit:
            return tokens[-limit:]
    return codec.encode(text)[-limit:]
