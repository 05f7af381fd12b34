"""Small tokenizers of every kind in checkpoints, made with the tokenizers library."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = [
    "the green room of the theatre, where actors wait",
    "naïve café — 東京 🎭🎟️ fin ▁ 'tis  two   spaces",
    "def f(x):\n\treturn x*2  # ok",
    "Ωμέγα русский 한국어 don't won't it's",
]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    return tokenizer


def byte_fallback(decoder: decoders.Decoder, normalizer: normalizers.Normalizer) -> Tokenizer:
    """Return a converted SentencePiece BPE tokenizer, as of Llama, Mixtral and Gemma."""
    words = ["▁", "▁the", "▁green", "room", "▁of", "s", "▁▁", "é", "東", "a", "b", "\n", "▁a▁b"]
    vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    vocabulary |= {word: 257 + number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoder
    return tokenizer


def llama() -> Tokenizer:
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return byte_fallback(decoders.Sequence(parts), normalizer)


def gemma() -> Tokenizer:
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return byte_fallback(decoders.Sequence(parts), normalizers.Replace(" ", "▁"))


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(TEXTS, trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>"))
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]"]))
    return tokenizer


def word_ends() -> Tokenizer:
    """Return a tokenizer like GPT-1's, which marks the end of a word instead of its beginning."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>"], end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def with_added_tokens(make: Callable[[], Tokenizer]) -> Tokenizer:
    tokenizer = make()
    tokenizer.add_special_tokens([AddedToken("<|end|>", lstrip=True, rstrip=True), AddedToken("<s>")])
    tokenizer.add_tokens(
        [
            AddedToken("<tool>", lstrip=True),
            AddedToken("</tool>", rstrip=True, single_word=True),
            AddedToken("né"),
            AddedToken("  "),
            AddedToken("東京"),
        ]
    )
    return tokenizer


KNOWN = {"byte_level": byte_level, "llama": llama, "gemma": gemma, "unigram": unigram}
OTHERS = {"word_piece": word_piece, "word_ends": word_ends}
