"""Text comes as it can be shown: whole characters, no piece of a stop string."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from server.engine.text import Detokenizer, TextAssembler

TEXT = "naïve café — 東京 🎭🎟️ fin"


def decode_bytes(token_ids: list[int]) -> str:
    return bytes(token_ids).decode("utf-8", errors="replace")


def pieces(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], TextAssembler]:
    """What is sent for each byte of a text, and the assembler after it."""
    assembler = TextAssembler(Detokenizer(decode_bytes, b"prompt "), stop)
    out = []
    for byte in text.encode():
        out.append(assembler.push(byte))
        if assembler.is_stopped:
            break
    return [*out, assembler.flush()], assembler


def test_half_characters_are_never_sent() -> None:
    sent, _ = pieces(TEXT)
    assert "".join(sent) == TEXT
    assert not any("\ufffd" in piece for piece in sent)


def test_an_incomplete_character_at_the_end_is_sent_as_it_decodes() -> None:
    assembler = TextAssembler(Detokenizer(decode_bytes, b""), ())
    assert assembler.push("é".encode()[0]) == ""
    assert assembler.flush() == "\ufffd"


def test_spaces_between_words_survive_a_decoder_that_strips_the_first() -> None:
    """SentencePiece-like decoders drop the space of the first token they are given."""
    vocabulary = {"▁the": 0, "▁green": 1, "room": 2, "▁door": 3, "<unk>": 4}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    detokenizer = Detokenizer(tokenizer.decode, [0])
    assert [detokenizer.push(token) for token in (1, 2, 3)] == [" green", "room", " door"]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "two"), "one "),
        ("one twofold", ("two three",), "one twofold"),
        ("aaab", ("aab",), "a"),
        ("ends with tw", ("two",), "ends with tw"),
        ("日本語", ("本",), "日"),
    ],
)
def test_stop_strings(text: str, stop: tuple[str, ...], expected: str) -> None:
    sent, assembler = pieces(text, stop)
    assert "".join(sent) == expected
    assert assembler.is_stopped == (expected != text)


def test_random_texts_and_stops_agree_with_a_plain_search() -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice("abé") for _ in range(30))
        stop = tuple("".join(rng.choice("abé") for _ in range(rng.randint(1, 6))) for _ in range(2))
        ends = [text.encode().find(s.encode()) + len(s.encode()) for s in stop if s in text]
        sent, _ = pieces(text, stop)
        # The stop string that is complete first ends the text, before its own first character.
        end = min(ends, default=None)
        seen = text if end is None else text.encode()[:end].decode()
        starts = [seen.find(s) for s in stop if s in seen]
        assert "".join(sent) == (seen[: min(starts)] if starts else text)
