"""The bytes that each token adds to a text, for tokenizers whose decoder treats each token on its own."""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
# Byte-level vocabularies write each byte as one printable character (GPT-2).
ALPHABET = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}
_IN_ALPHABET = re.compile(f"[{re.escape(''.join(ALPHABET))}]*")
_BYTES = str.maketrans({character: chr(byte) for character, byte in ALPHABET.items()})  # as characters of latin-1
_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")

EACH_BYTE = "greenroom.each_byte"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """Error handler for ``bytes.decode`` that replaces every invalid byte, like the byte fallback decoder."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(EACH_BYTE, _replace_each_byte)


@dataclass(frozen=True)
class DecoderRules:
    """The changes that a decoder of the tokenizers library makes to each token, and to the start of a text."""

    is_byte_level: bool = False  # tokens are written in ALPHABET
    replacements: tuple[tuple[str, str], ...] = ()
    has_byte_tokens: bool = False  # <0xE2> is a byte
    start_mark: str = ""  # removed from the first token of a text
    num_spaces: int = 0  # removed from the start of a text


def decoder_rules(decoder: Any) -> DecoderRules | None:
    """Return the rules of a decoder; None if it does something that rules can't express."""
    if decoder is None:
        return None
    parts = _parts(json.loads(decoder.__getstate__()))
    replacements: list[tuple[str, str]] = []
    has_byte_tokens, num_spaces = False, 0
    for place, part in enumerate(parts):
        before = {earlier["type"] for earlier in parts[:place]}
        match part:
            case {"type": "ByteLevel"} if len(parts) == 1:
                return DecoderRules(is_byte_level=True)
            case {"type": "Metaspace", "replacement": str(mark), "prepend_scheme": scheme} if len(parts) == 1:
                return DecoderRules(replacements=((mark, " "),), start_mark="" if scheme == "never" else mark)
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if before <= {"Replace"}:
                replacements.append((old, new))
            case {"type": "ByteFallback"} if before <= {"Replace"}:
                has_byte_tokens = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0} if "Fuse" in before:
                num_spaces += start
            case _:
                return None
    return DecoderRules(False, tuple(replacements), has_byte_tokens, "", num_spaces)


def _parts(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [part for inner in decoder["decoders"] for part in _parts(inner)]


def has_regular_expression(tokenizer: Tokenizer | None) -> bool:
    """Return True if the decoder matches a regular expression, which the library does with the interpreter locked."""
    if tokenizer is None or tokenizer.decoder is None:
        return False
    return any("Regex" in part.get("pattern", ()) for part in _parts(json.loads(tokenizer.decoder.__getstate__())))


class TokenBytes:
    """The bytes of tokens; an id without a token has none."""

    def __init__(self, tokenizer: Tokenizer, rules: DecoderRules):
        self._tokenizer, self.rules = tokenizer, rules
        added = tokenizer.get_added_tokens_decoder().values()
        self._special = {token.content for token in added if token.special}
        self._all: dict[int, bytes] = {}
        self._visible: dict[int, bytes] = {}

    @property
    def errors(self) -> str:
        """The name of the error handler for invalid bytes."""
        return EACH_BYTE if self.rules.has_byte_tokens else "replace"

    def vocabulary(self) -> list[bytes]:
        """Return the bytes of every token by its id; empty for an id without a token."""
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        return [self.of_token(token_id) for token_id in range(max(ids) + 1)]

    def of_token(self, token_id: int) -> bytes:
        """Return a token's bytes, special or not."""
        if token_id not in self._all:
            token = self._tokenizer.id_to_token(token_id)
            self._all[token_id] = b"" if token is None else self._encode(token)
        return self._all[token_id]

    def visible(self, token_id: int) -> bytes:
        """Return a token's bytes in a text without special tokens."""
        found = self._visible.get(token_id)
        if found is None:
            is_special = self._tokenizer.id_to_token(token_id) in self._special
            found = self._visible[token_id] = b"" if is_special else self.of_token(token_id)
        return found

    def at_start(self, token_id: int) -> bytes:
        """Return a token's bytes at the start of a text, before spaces are removed."""
        return self._encode((self._tokenizer.id_to_token(token_id) or "").replace(self.rules.start_mark, ""))

    def _encode(self, token: str) -> bytes:
        rules = self.rules
        if rules.is_byte_level and _IN_ALPHABET.fullmatch(token):
            return token.translate(_BYTES).encode("latin-1")
        for old, new in rules.replacements:
            token = token.replace(old, new)
        if rules.has_byte_tokens and _BYTE_TOKEN.fullmatch(token):
            return bytes([int(token[3:5], 16)])
        return token.encode()
