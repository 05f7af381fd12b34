"""Vocabularies whose tokens cross words, lines and scripts, so that any other split of a text gives other tokens.

``python -m tests.gguf.vocabularies`` trains them anew on this repository and on words of many scripts.
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

FOLDER = Path(__file__).parent / "tokenizers"
BYTE_LEVEL_MERGES, PIECE_MERGES = FOLDER / "byte_level_merges.txt", FOLDER / "piece_merges.txt"
REPOSITORY = Path(__file__).parents[2]
SPACE = "\u2581"
CONTROL = ("<|begin|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<\uff5cend\u2581of\u2581sentence\uff5c>")
USER_DEFINED = ("<think>", "<think>>", "    ")
NORMAL, UNKNOWN, CONTROL_TYPE, USER_TYPE, UNUSED, BYTE = range(1, 7)
NUM_MERGES, LONGEST = 2000, 8
UNMERGED = ("zqx", "\u0120zqx", "98765")  # tokens that no merges make
SCRIPTS = (
    "éàüñçøÉÀÜ",
    "абвгдежАБВГ",
    "αβγδεΑΒΓ",
    "你好世界中文测试",
    "かなカナテスト",
    "한국어안녕",
    "नमस्तेहिन्दी",
    "ابتثجحم",
    "ไทยสวัสดี",
    "😀👍🏽🎉🚀",
)


@cache
def byte_level() -> tuple[list[str], list[str]]:
    """Return the tokens and the merges of a byte-level vocabulary, special tokens last."""
    merges = BYTE_LEVEL_MERGES.read_text("utf-8").splitlines()
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "", 1) for merge in merges)]
    return [*dict.fromkeys(tokens), *UNMERGED, *CONTROL, *USER_DEFINED], merges


@cache
def pieces() -> tuple[list[str], list[str]]:
    """Return the tokens and the merges of a vocabulary like SentencePiece's: special tokens and bytes first."""
    lines = PIECE_MERGES.read_text("utf-8").split("\n")
    characters, merges = list(lines[0]), lines[1:]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [*characters, *(merge.replace(" ", "", 1) for merge in merges)]
    return [*dict.fromkeys(tokens), *CONTROL, *USER_DEFINED], merges


def write_file(path: Path, kind: str, pre: str | None = None, **values: Any) -> Path:
    """Write a file of a vocabulary alone.

    Args:
        kind: ``gpt2``, ``llama`` or ``gemma4``.
        values: further values of the metadata, by their names or the last parts of them.
    """
    tokens, merges = byte_level() if kind == "gpt2" else pieces()
    if kind == "gemma4":
        tokens, merges = [*tokens, "\n", "\n\n", "\n\n\n"], [*merges, "\n \n", "\n\n \n"]
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model(kind)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([_type_of(token) for token in tokens])
    if kind == "llama":
        ranks = {merge.replace(" ", "", 1): rank for rank, merge in reversed(list(enumerate(merges)))}
        writer.add_token_scores([-float(ranks.get(token, len(merges))) for token in tokens])
    else:
        writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<s>" if kind == "llama" else CONTROL[0]))
    writer.add_eos_token_id(tokens.index(CONTROL[1]))
    for key, value in values.items():
        writer.add_key_value(key if "." in key else f"tokenizer.ggml.{key}", value, gguf.GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _type_of(token: str) -> int:
    if token in CONTROL or token in ("<s>", "</s>"):
        return CONTROL_TYPE
    if token in USER_DEFINED:
        return USER_TYPE
    if token == "<unk>":
        return UNKNOWN
    return BYTE if len(token) == 6 and token.startswith("<0x") else NORMAL


def random_texts(count: int, seed: int = 20261128) -> list[str]:
    """Return texts of words, numbers, signs, spaces and special tokens in many scripts."""
    generator = random.Random(seed)
    parts: list[Any] = [
        lambda: "".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(1, 7))),
        lambda: "".join(generator.choices("abcdeABCDE", k=generator.randint(1, 7))),
        lambda: "".join(generator.choices("0123456789", k=generator.randint(1, 8))),
        lambda: "".join(generator.choices("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", k=generator.randint(1, 4))),
        lambda: "".join(generator.choices(" \t\n\r", weights=[6, 1, 2, 1], k=generator.randint(1, 5))),
        lambda: " ",
        lambda: generator.choice(["zqx", " zqx", "zqxa", "98765", "``", "~~", "\n\n", "!\n", "\u4f60", "\u597d"]),
        lambda: generator.choice(["'s", "'S", "'re", "'LL", "'d", "n't", "'x", "\u2019s"]),
        lambda: "".join(generator.choices(generator.choice(SCRIPTS), k=generator.randint(1, 5))),
        lambda: generator.choice(
            ["\u00a0", "\u3000", "\u2028", "\u0301", "\u200d", "\u00bd", "\u0663", "\u2167", "\uff11"]
        ),
        lambda: generator.choice(["\uff0c", "\u3002", "\u300c", "\uff01", "\u2014", "\u20ac", "\u00d7", "\u2192"]),
        lambda: generator.choice([*CONTROL, *USER_DEFINED]),
        lambda: chr(generator.choice([generator.randrange(1, 128), generator.randrange(161, 0x3000)])),
    ]
    return ["".join(generator.choice(parts)() for _ in range(generator.randint(1, 9))) for _ in range(count)]


def main() -> None:
    """Train the vocabularies."""
    generator = random.Random(1)
    scripts = (*SCRIPTS, "abcde", "ABCab")
    words = ["".join(generator.choices(script, k=generator.randint(1, 4))) for script in scripts for _ in range(30)]
    signs = [
        "",
        "",
        " ",
        " ",
        ", ",
        ". ",
        "\n",
        "\n\n",
        "\uff0c",
        "\u3002",
        "12",
        "345",
        "1234",
        "!!",
        "'s ",
        "'re ",
        "\t",
    ]
    signs += ["  ", "`", "~", "!\n", ",\n\n", "\n\n\n", "+=", "$", "``` ", "\r\n"]
    foreign = ["".join(generator.choice(words) + generator.choice(signs) for _ in range(40)) for _ in range(4000)]
    sources = [*sorted((REPOSITORY / "docs").glob("*.md")), *sorted((REPOSITORY / "server" / "model").rglob("*.py"))]
    texts = [text[:20000] for path in sources for text in [path.read_text("utf-8")]] + foreign
    FOLDER.mkdir(exist_ok=True)
    BYTE_LEVEL_MERGES.write_text("\n".join(_train(texts, Tokenizer(models.BPE()), is_byte_level=True)[1]), "utf-8")
    characters, merges = _train(texts, Tokenizer(models.BPE()), is_byte_level=False)
    PIECE_MERGES.write_text("\n".join(["".join(characters), *merges]), "utf-8")


def _train(texts: list[str], tokenizer: Tokenizer, *, is_byte_level: bool) -> tuple[list[str], list[str]]:
    """Return the characters and the merges of texts that are not split into words."""
    if is_byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if is_byte_level else []
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_MERGES + 256 + len(set("".join(SCRIPTS))),
        initial_alphabet=alphabet,
        max_token_length=LONGEST,
        show_progress=False,
    )
    chunks = [text[start : start + 60] for text in texts for start in range(0, len(text), 60)]
    tokenizer.train_from_iterator(chunks, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    merges = [merge for merge in map(" ".join, state["merges"]) if "\n" not in merge and "\r" not in merge]
    characters = [token for token in state["vocab"] if len(token) == 1 and token not in "\n\r"]
    return characters, merges


if __name__ == "__main__":
    main()
