"""Tokenizers of the library tokenizers, from the vocabularies of GGUF files: one function for each kind of them.

What llama.cpp does with a text (``llama-vocab.cpp``) is the rule: which tokens are matched whole before anything else,
which merge comes first, and what a character becomes that no token has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from server.model.checkpoint.gguf.end_tokens import END_TOKENS
from server.model.checkpoint.gguf.pre_tokenizers import PreTokenizer

SPACE = "\u2581"  # stands for a space in the tokens of SentencePiece
LINES = "[^\n]+|\n+"
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # types of tokens that are matched whole
RIGHT_STRIPPED = ("phi-3", "phi3")  # models, by a part of their names, whose special tokens take the spaces after them
NOT_STRIPPED = ("<unk>", "<s>", "<|endoftext|>")  # other than these


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a file, and what it says about them."""

    tokens: Sequence[str]  # each once
    types: Sequence[int]  # of each token; none if the file does not say them
    scores: Sequence[float]
    merges: Sequence[str]  # two tokens each, with a space between them
    pre_tokenizer: PreTokenizer
    unknown: str | None
    adds_space: bool  # before each text
    model_name: str

    @property
    def numbers(self) -> dict[str, int]:
        """The number of each token."""
        return {token: number for number, token in enumerate(self.tokens)}


def byte_level(vocabulary: Vocabulary) -> Tokenizer:
    """``gpt2``: byte pair encoding of words whose bytes are spelled as characters."""
    merges = _listed_merges(vocabulary)
    model = models.BPE(vocabulary.numbers, merges, ignore_merges=vocabulary.pre_tokenizer.ignores_merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = vocabulary.pre_tokenizer.build()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    """``llama``: merges in the order of scores, and bytes for characters that no token has."""
    numbers = vocabulary.numbers
    tokenizer = Tokenizer(_with_bytes(numbers, _scored_merges(numbers, vocabulary.scores), vocabulary.unknown))
    escape = normalizers.Replace(" ", SPACE)
    decode = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.adds_space:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), escape])
        decode.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = escape
    tokenizer.decoder = decoders.Sequence(decode)
    return tokenizer


def gemma4(vocabulary: Vocabulary) -> Tokenizer:
    """``gemma4``: listed merges over complete lines, and bytes for characters that no token has."""
    tokenizer = Tokenizer(_with_bytes(vocabulary.numbers, _listed_merges(vocabulary), vocabulary.unknown))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(LINES), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


KINDS: Mapping[str, Callable[[Vocabulary], Tokenizer]] = {  # by tokenizer.ggml.model
    "gpt2": byte_level,
    "llama": sentencepiece,
    "gemma4": gemma4,
}


def add_whole_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Let a tokenizer match the tokens whole that are no parts of words; of them, user-defined ones are text."""
    name = vocabulary.model_name.lower()
    takes_spaces = any(part in name for part in RIGHT_STRIPPED)
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=False):
        if token and kind in (UNKNOWN, CONTROL, USER_DEFINED):
            is_special = kind != USER_DEFINED or token in END_TOKENS
            strips = takes_spaces and token not in NOT_STRIPPED
            added = AddedToken(token, normalized=False, special=is_special, rstrip=strips)
            (tokenizer.add_special_tokens if is_special else tokenizer.add_tokens)([added])


def _with_bytes(numbers: dict[str, int], merges: list[tuple[str, str]], unknown: str | None) -> models.BPE:
    return models.BPE(numbers, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)


def _listed_merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Return the merges of a file; a token may begin with a space."""
    found = []
    for merge in vocabulary.merges:
        place = merge.find(" ", 1)
        if place < 0:
            raise ValueError(f"the merge {merge!r} is not of two tokens")
        found.append((merge[:place], merge[place + 1 :]))
    return found


def _scored_merges(numbers: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Return the merges that make tokens of two others, that of the highest score first."""
    if len(scores) < len(numbers):
        raise ValueError(f"it has {len(scores)} scores for {len(numbers)} tokens")
    order = sorted(numbers, key=lambda token: (-scores[numbers[token]], numbers[token]))
    return [merge for token in order for merge in _splits(token, numbers)]


def _splits(token: str, numbers: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    for place in range(1, len(token)):
        if token[:place] in numbers and token[place:] in numbers:
            yield token[:place], token[place:]
