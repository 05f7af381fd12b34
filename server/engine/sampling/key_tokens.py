"""Tokens by the keys of JSON objects that they may write, to find those that repeat a key. Torch-free."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from server.engine.sampling.json_keys import FIRST_OF_TEXT, JsonKeys, decode_key

Ids = npt.NDArray[np.int64]


class KeyTokens:
    """The tokens of a vocabulary that have a quote.

    A token repeats a key in one of three ways: its text up to its first quote ends the key that is being read, a text
    between two of its quotes is a key, or it writes one key twice itself.

    Args:
        tokens: the bytes of each token.
    """

    def __init__(self, tokens: Sequence[bytes]):
        heads: dict[bytes, list[int]] = defaultdict(list)
        inner: dict[bytes, list[int]] = defaultdict(list)
        doubtful: list[int] = []
        quoted = [token_id for token_id, token in enumerate(tokens) if b'"' in token]
        for token_id in quoted:
            token = tokens[token_id]
            head = _head(token)
            end = None if head is None else _decoded(head)
            if end is not None:
                heads[end].append(token_id)
            first, *between = token.split(b'"')[:-1]
            for text in between:
                inner[text].append(token_id)
            has_escapes = b"\\" in token and (bool(between) or (head is not None and end is None))
            if has_escapes or len({*between}) < len(between) or _may_equal_begun_key(first, between):
                doubtful.append(token_id)
        self._tokens, self._quoted, self._doubtful = tokens, _ids(quoted), _ids(doubtful)
        self._heads = {text: _ids(each) for text, each in heads.items()}
        self._inner = {text: _ids(each) for text, each in inner.items()}

    def repeating(self, keys: JsonKeys, allowed: npt.NDArray[np.bool_]) -> Ids:
        """Return the allowed tokens that complete a key that its object has already."""
        if not keys.may_repeat:
            return _ids([])
        begun = keys.begun
        if begun is None:  # no token can be told from its own text
            return self._read(keys, [self._quoted], allowed)
        doubtful = [self._doubtful, *self._with(keys.all_keys)]
        if not keys.is_in_key:
            return self._read(keys, doubtful, allowed)
        ends = [key[len(begun) :] for key in keys.own_keys if key.startswith(begun)]
        certain = [self._heads[end] for end in ends if end in self._heads]
        read = self._read(keys, [*doubtful, *self._with([begun])], allowed)
        return np.concatenate([read, *(each[allowed[each]] for each in certain)])

    def _with(self, keys: Sequence[bytes]) -> list[Ids]:
        return [self._inner[key] for key in keys if key in self._inner]

    def _read(self, keys: JsonKeys, candidates: Sequence[Ids], allowed: npt.NDArray[np.bool_]) -> Ids:
        """Return those allowed candidates that repeat a key, by reading each of them."""
        token_ids = np.concatenate(candidates)
        token_ids = token_ids[allowed[token_ids]]
        return _ids([token_id for token_id in token_ids.tolist() if keys.repeats(self._tokens[token_id])])


def _head(token: bytes) -> bytes | None:
    """Return the part of a token that ends a string in which it begins; None if the string goes on."""
    is_escaped = False
    for place, byte in enumerate(token):
        if byte == ord('"') and not is_escaped:
            return token[:place]
        is_escaped = byte == ord("\\") and not is_escaped
    return None


def _decoded(head: bytes) -> bytes | None:
    """Return the end of a key, decoded; it may begin within a character. None if it is not certain, or ends no key."""
    if b"\\" in head:
        return decode_key(head)
    return None if any(byte < FIRST_OF_TEXT for byte in head) else head


def _may_equal_begun_key(head: bytes, between: Sequence[bytes]) -> bool:
    """Return whether a token may write the key that its head ends once more; ``KeyTokens`` looks up an empty head."""
    return head != b"" and any(text.endswith(head) for text in between)


def _ids(token_ids: Sequence[int]) -> Ids:
    return np.array(token_ids, np.int64)
