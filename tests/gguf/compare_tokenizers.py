"""Compares the tokens of GGUF files with llama.cpp's: ``python -m tests.gguf.compare_tokenizers PYTHON``.

PYTHON is the interpreter of an environment with the package ``llama-cpp-python``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import zstandard

from server.model.checkpoint.gguf.gguf_file import GgufFile
from server.model.checkpoint.gguf.gguf_tokenizer import make_tokenizer
from server.model.checkpoint.gguf.pre_tokenizers import PRE_TOKENIZERS
from tests.gguf.vocabularies import FOLDER, REPOSITORY, random_texts, write_file

STORED = FOLDER / "llama_cpp_ids.json.gz"
NUM_STORED, NUM_RANDOM = 300, 10_000
CORPUS_CHARACTERS, PART = 120_000, 400  # of each domain, and of each text


class Case(NamedTuple):
    """A file whose tokenizer is compared."""

    name: str
    kind: str
    pre: str | None = None
    values: tuple[tuple[str, Any], ...] = ()

    def write(self, folder: Path) -> Path:
        return write_file(folder / f"{self.name}.gguf", self.kind, self.pre, **dict(self.values))


def _of_different_rules() -> Iterator[Case]:
    """Yield a case for each set of rules, by the first name that has them."""
    seen = set()
    for name, rules in PRE_TOKENIZERS.items():
        if rules not in seen:
            seen.add(rules)
            yield Case(name, "gpt2", name)


CASES = {
    case.name: case
    for case in (
        *_of_different_rules(),
        Case("no-name", "gpt2"),
        Case("qwen2-with-both", "gpt2", "qwen2", (("add_bos_token", True), ("add_eos_token", True))),
        Case("llama-bpe-without", "gpt2", "llama-bpe", (("add_bos_token", False),)),
        Case("sentencepiece", "llama"),
        Case("sentencepiece-no-space", "llama", None, (("add_space_prefix", False), ("add_bos_token", False))),
        Case("sentencepiece-with-end", "llama", None, (("add_eos_token", True),)),
        Case("phi-3", "llama", None, (("general.name", "Phi-3.5-MoE"),)),
        Case("gemma4", "gemma4"),
    )
}


def has_marks_or_capitals(text: str) -> bool:
    """Return True for a text with combining marks, or with letters beyond ASCII that have upper and lower case."""
    kinds = {unicodedata.category(character) for character in text if not character.isascii()}
    return any(kind[0] == "M" or kind in ("Lu", "Lt", "Ll") for kind in kinds)


def has_other_words_in_kimi_k2(text: str) -> bool:
    """Return True for a text whose words change from lower to upper case, or with signs that belong to Chinese."""
    return (
        has_marks_or_capitals(text)
        or re.search("[a-z][A-Z]|[\u2e80-\u2fdf\u3005\u3007\u3021-\u303b]", text) is not None
    )


def has_wide_space(text: str) -> bool:
    """Return True for a text with the space of Chinese and Japanese."""
    return "\u3000" in text


def has_other_spaces(text: str) -> bool:
    """Return True for a text with spaces beyond ASCII, or several."""
    return "    " in text or any(character.isspace() and not character.isascii() for character in text)


# Texts of which llama.cpp makes other tokens than the models' own tokenizers, which Greenroom follows. llama.cpp's
# patterns know no combining marks, and take letters beyond ASCII for both upper and lower case (all letters for Kimi
# K2); its spaces beyond ASCII are none of their code points; and special tokens take only ASCII's spaces after them.
UNLIKE: Mapping[str, Callable[[str], bool]] = {
    **dict.fromkeys(("tekken", "gpt-4o"), has_marks_or_capitals),
    "kimi-k2": has_other_words_in_kimi_k2,
    "deepseek-llm": has_wide_space,
    "phi-3": has_other_spaces,
}


def is_alike(case: str, text: str) -> bool:
    """Return True if llama.cpp makes the same tokens of a text as the model's own tokenizer."""
    return case not in UNLIKE or not UNLIKE[case](text)


def compared_tokens(case: Case, tokens: list[int]) -> list[int]:
    """Return llama.cpp's tokens without the first one of Gemma 4, which its chat template has and texts do not."""
    return tokens[1:] if case.kind == "gemma4" else tokens


def ids_of_llama_cpp(interpreter: str, files: Sequence[Path], texts: Sequence[str]) -> list[list[list[int]]]:
    """Return llama.cpp's tokens of each text, for each file."""
    given = json.dumps({"files": list(map(str, files)), "texts": texts})
    script = str(Path(__file__).with_name("llama_cpp_ids.py"))
    result = subprocess.run([interpreter, script], input=given, capture_output=True, text=True, check=True)
    found: list[list[list[int]]] = json.loads(result.stdout)
    return found


def corpus_texts(folder: Path | None) -> list[str]:
    """Return texts of every domain of a corpus, and of this repository."""
    sources = [path.read_text("utf-8") for path in sorted((REPOSITORY / "server").glob("*/*.py"))]
    sources = ["".join(sources), (REPOSITORY / "README.md").read_text("utf-8")]
    for path in sorted(folder.glob("*.txt.zst")) if folder is not None else ():
        sources.append(zstandard.ZstdDecompressor().stream_reader(path.open("rb")).read().decode())
    return [text[start : start + PART] for text in sources for start in range(0, len(text[:CORPUS_CHARACTERS]), PART)]


def main() -> None:
    """Print how many texts have other tokens, for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python")
    parser.add_argument("--corpus", type=Path, help="a folder of NAME.txt.zst")
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--write", action="store_true", help="store llama.cpp's tokens of some texts for the tests")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        if given.write:
            texts = random_texts(NUM_STORED, seed=1)
            files = [case.write(Path(folder)) for case in CASES.values()]
            ids = dict(zip(CASES, ids_of_llama_cpp(given.python, files, texts), strict=True))
            STORED.write_bytes(gzip.compress(json.dumps({"texts": texts, "ids": ids}).encode(), mtime=0))
            return
        groups = {"corpus": corpus_texts(given.corpus), "random": random_texts(NUM_RANDOM)}
        for case in map(CASES.__getitem__, given.cases):
            for name, texts in groups.items():
                sys.stdout.write(f"{case.name}, {name}: {_compare(given.python, case, texts, Path(folder))}\n")
                sys.stdout.flush()


def _compare(interpreter: str, case: Case, texts: Sequence[str], folder: Path) -> str:
    path = case.write(folder)
    [expected] = ids_of_llama_cpp(interpreter, [path], texts)
    found = make_tokenizer(GgufFile.open(folder, path.name))(list(texts))["input_ids"]
    other = [
        text for text, theirs, ours in zip(texts, expected, found, strict=True) if compared_tokens(case, theirs) != ours
    ]
    unexplained = [text for text in other if is_alike(case.name, text)]
    return f"{len(other)} of {len(texts)} differ, {len(unexplained)} unexplained {unexplained[:2] or ''}"


if __name__ == "__main__":
    main()
