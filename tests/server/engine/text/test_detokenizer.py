"""Incremental text equals the text of decoding all tokens at once."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from server.engine.text.codec import Codec
from server.engine.text.detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer
from server.model.checkpoint.folder_checkpoint import FolderCheckpoint
from server.model.checkpoint.locate import BUNDLED
from server.model.text.token_bytes import ALPHABET, TokenBytes, decoder_rules
from server.model.text.tokenizer import Tokenizer as ModelTokenizer
from tests.server.engine.text.tokenizers_of_kinds import KNOWN, OTHERS, TEXTS, with_added_tokens

REPLACEMENT = "\ufffd"


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    if kind == "bundled":
        return Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    return with_added_tokens((KNOWN | OTHERS)[kind])


@cache
def tokens_of(kind: str) -> TokenBytes:
    tokenizer = tokenizer_of(kind)
    rules = decoder_rules(tokenizer.decoder)
    assert rules is not None
    return TokenBytes(tokenizer, rules)


def detokenizer_of(kind: str, prompt: list[int]) -> Detokenizer:
    if kind not in OTHERS:
        return ByteDetokenizer(tokens_of(kind), prompt)
    tokenizer = tokenizer_of(kind)
    silent = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return WindowDetokenizer(tokenizer.decode, silent, prompt)


def pieces(detokenizer: Detokenizer, generated: list[int]) -> list[str]:
    return [*(detokenizer.push(token) for token in generated), detokenizer.flush()]


def follow_up(tokenizer: Tokenizer, prompt: list[int], generated: list[int]) -> str:
    """Return the text of all tokens without the prompt's; a character that the prompt begins is complete."""
    whole = tokenizer.decode(prompt + generated)
    before = tokenizer.decode(prompt)
    if not whole.startswith(before):
        texts = [tokenizer.decode(prompt[:length]) for length in range(len(prompt) + 1)]
        befores = [
            text[: len(text) - cut]
            for text in texts
            for cut in range(4)
            if not text[len(text) - cut :].strip(REPLACEMENT)
        ]
        before = max(filter(whole.startswith, befores), key=len)
    return whole.removeprefix(before)


def is_text(kind: str, token_ids: list[int]) -> bool:
    """Return whether adjacent byte tokens are complete characters."""
    run = b""
    for token in [*token_ids, -1]:
        text = tokenizer_of(kind).id_to_token(token) if token >= 0 else ""
        if token >= 0 and not tokens_of(kind).visible(token):
            continue
        if text and len(text) == 6 and text.startswith("<0x"):
            run += tokens_of(kind).of_token(token)
            continue
        try:
            run.decode()
        except UnicodeDecodeError:
            return False
        run = b""
    return True


@pytest.mark.slow
@settings(max_examples=300)
@given(kind=st.sampled_from(["bundled", *KNOWN, *OTHERS]), data=st.data())
def test_pieces_of_random_tokens_join_to_the_text_after_the_prompt(kind: str, data: st.DataObject) -> None:
    """Tokens include incomplete characters and byte tokens; only runs of byte tokens that are not UTF-8 may differ."""
    tokenizer = tokenizer_of(kind)
    size = tokenizer.get_vocab_size() + 3  # some ids are no tokens, as in padded vocabularies
    bytes_and_added = st.integers(0, min(size, 300)) | st.integers(max(0, size - 25), size)
    token_ids = st.lists(bytes_and_added | st.integers(0, size), max_size=30)
    prompt, generated = data.draw(token_ids), data.draw(token_ids)
    if kind in {"llama", "gemma"} and not is_text(kind, prompt + generated):
        return
    assert "".join(pieces(detokenizer_of(kind, prompt), generated)) == follow_up(tokenizer, prompt, generated)


@settings(max_examples=100)
@given(kind=st.sampled_from(["bundled", *KNOWN]), text=st.text(max_size=40), cut=st.integers(0, 20))
def test_pieces_have_no_incomplete_characters(kind: str, text: str, cut: int) -> None:
    tokenizer = tokenizer_of(kind)
    token_ids = tokenizer.encode(text).ids
    prompt, generated = token_ids[:cut], token_ids[cut:]
    sent = pieces(detokenizer_of(kind, prompt), generated)
    assert "".join(sent) == follow_up(tokenizer, prompt, generated)
    assert REPLACEMENT in text or not any(REPLACEMENT in piece for piece in sent)


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_invalid_byte_tokens_keep_adjacent_characters(kind: str) -> None:
    """Tokenizers would also replace the characters, which were already sent."""
    tokens = [1 + byte for byte in b"\xe2\x82\xac\xff\xe2\x82" + b"a"]
    sent = pieces(detokenizer_of(kind, []), tokens)
    assert sent == ["", "", "€", REPLACEMENT, "", "", f"{REPLACEMENT * 2}a", ""]


@pytest.mark.parametrize("kind", ["byte_level", "llama", "window"])
def test_at_most_three_invalid_bytes_are_held_back(kind: str) -> None:
    if kind == "window":
        decode = partial(bytes.decode, errors="replace")
        detokenizer: Detokenizer = WindowDetokenizer(lambda ids: decode(bytes(ids)), (), [])
        token = 0x80
    else:
        detokenizer = detokenizer_of(kind, [])
        token = next(n for n in range(400) if tokens_of(kind).of_token(n) == b"\x80")
    num_sent = 0
    for number in range(1, 200):
        num_sent += len(detokenizer.push(token))
        assert num_sent >= number - 3


def test_a_prompt_that_ends_within_a_character_is_continued_by_the_whole_character() -> None:
    tokens = {tokens_of("byte_level").of_token(n): n for n in range(256)}
    first, second, third = (tokens[bytes([byte])] for byte in "東".encode())
    assert pieces(detokenizer_of("byte_level", [first]), [second, third]) == ["", "東", ""]
    assert pieces(detokenizer_of("byte_level", [first]), [tokens[b"a"]]) == ["a", ""]
    assert pieces(detokenizer_of("byte_level", [first]), [second]) == ["", ""]


def test_the_byte_alphabet_equals_the_librarys() -> None:
    assert set(ALPHABET) == set(pre_tokenizers.ByteLevel.alphabet())


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        decoders.WordPiece(),
        decoders.BPEDecoder(),
        decoders.CTC(),
        decoders.Sequence([decoders.Fuse(), decoders.Replace("a", "b")]),
        decoders.Sequence([decoders.Strip(" ", 1, 0), decoders.Fuse()]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]),
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    ],
    ids=str,
)
def test_decoders_that_join_tokens_have_no_rules(decoder: decoders.Decoder | None) -> None:
    assert decoder_rules(decoder) is None


@pytest.mark.parametrize("kind", ["byte_level", "llama", "word_piece"])
def test_pieces_of_a_prompt_include_special_tokens(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp(kind)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(kind), unk_token=None).save_pretrained(folder)
    codec = Codec(ModelTokenizer(FolderCheckpoint(folder)))
    tokenizer = tokenizer_of(kind)
    end = tokenizer.token_to_id("<|end|>")
    token_ids = [end, *tokenizer.encode(TEXTS[0]).ids, end]
    found = codec.pieces(token_ids)
    assert len(found) == len(token_ids)
    assert "".join(found) == tokenizer.decode(token_ids, skip_special_tokens=False)
    assert codec.token_bytes(end) == b"<|end|>"
    assert codec.pieces([]) == []
    generated = codec.detokenizer(token_ids[:4])
    assert "".join(pieces(generated, token_ids[4:])) == follow_up(tokenizer, token_ids[:4], token_ids[4:])


@pytest.mark.parametrize("kind", ["byte_level", "llama", "word_piece"])
def test_special_tokens_are_text_if_requested(kind: str, tmp_path: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(kind), unk_token=None).save_pretrained(tmp_path)
    codec, tokenizer = Codec(ModelTokenizer(FolderCheckpoint(tmp_path))), tokenizer_of(kind)
    end = tokenizer.token_to_id("<|end|>")
    text_ids = tokenizer.encode(TEXTS[0]).ids
    silent, written = codec.detokenizer(text_ids), codec.detokenizer(text_ids, frozenset({end}))
    assert "<|end|>" not in "".join(pieces(silent, [end, *text_ids, end]))
    assert "".join(pieces(written, [end, *text_ids, end])).count("<|end|>") == 2
    other = codec.detokenizer(text_ids, frozenset({text_ids[0]}))
    assert "<|end|>" not in "".join(pieces(other, [end, *text_ids, end]))
