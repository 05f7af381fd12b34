"""Tokens that a completion does not generate: those of ``bad_words``, and those that begin calls of absent tools."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.api.openai.bodies import ChatBody
from server.api.tool_parsers.chat_format import ChatFormat
from server.engine.interface import ChatPrompt, ChatTraits, TextCodec


@dataclass(frozen=True)
class MutedTokens:
    """Tokens that are not generated.

    Args:
        anywhere: nowhere in the text.
        first: not as its first token.
        sequences: not one after the other.

    """

    anywhere: frozenset[int] = frozenset()
    first: frozenset[int] = frozenset()
    sequences: frozenset[tuple[int, ...]] = frozenset()


NONE_MUTED = MutedTokens()


def mute_calls(body: ChatBody, chat_format: ChatFormat, prompt: ChatPrompt, codec: TextCodec) -> MutedTokens:
    """Return the tokens without which no tool call begins; none if a request has tools or a grammar; may block.

    Nothing is muted that the client asks for: an opener that is in a message, as a client may describe its tools there
    and read the calls itself, and the tokens of ``allowed_token_ids`` and ``logit_bias``.
    """
    texts = [message.text for message in body.messages]
    openers = [opener for opener in chat_format.openers if not any(opener in text for text in texts)]
    if body.shown_tools or body.grammar_spec is not None or not openers:
        return NONE_MUTED
    wanted = {*(body.allowed_token_ids or ()), *body.logit_bias}
    own = _own_tokens(chat_format.openers, codec.chat_traits)
    if own:
        muted = {own[opener] for opener in openers if opener in own} - wanted
        has_calls = any(message.tool_calls for message in body.messages)
        # Without calls, a prompt contains an opener only if the template got tools by an option of its own.
        return MutedTokens(frozenset(muted if has_calls else muted.difference(prompt.token_ids)))
    begins_turn = not body.continue_final_message and chat_format.thinking is None
    each = [_mute_text(opener, codec, wanted, texts if begins_turn else None) for opener in openers]
    return MutedTokens(
        first=frozenset().union(*(muted.first for muted in each)),
        sequences=frozenset().union(*(muted.sequences for muted in each)),
    )


def _own_tokens(openers: Sequence[str], traits: ChatTraits) -> dict[str, int]:
    """Return the token of each opener that is a token, or contains a special one."""
    found = {}
    for opener in openers:
        inside = (token for text, token in traits.special.items() if text in opener)
        token = traits.markers.get(opener, next(inside, None))
        if token is not None:
            found[opener] = token
    return found


def _mute_text(opener: str, codec: TextCodec, wanted: set[int], texts: Sequence[str] | None) -> MutedTokens:
    """Mute an opener of several tokens: its first one where a turn begins, elsewhere all up to the last letter.

    After its first token it is too late where a turn begins: the model writes what resembles a call. Elsewhere, a token
    such as ``<`` may begin anything.

    Args:
        texts: texts of the messages, which may show that a turn begins in this way; None if it begins in another.

    """
    tokens = codec.encode(opener, add_special_tokens=False)
    first, *_ = pieces = codec.pieces(tokens)
    while len(tokens) > 1 and not any(map(str.isalnum, pieces[len(tokens) - 1])):
        tokens.pop()
    may_begin = texts is None or tokens[0] in wanted or any(first in text for text in texts)
    return MutedTokens(
        first=frozenset(() if may_begin else tokens[:1]),
        sequences=frozenset(() if tokens[-1] in wanted else {tuple(tokens)}),
    )
