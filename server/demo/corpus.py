"""The corpus of the bundled model: read it, hold a slice out, turn it into training rows.

A corpus is a folder of ``DOMAIN.txt`` or ``DOMAIN.txt.zst`` files, UTF-8, whose documents end with a line
``<|endoftext|>``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
HELD_OUT_SHARE = 0.02
SHINGLE_WORDS = 12


class CorpusError(Exception):
    """The folder does not hold a usable corpus."""


@dataclass(frozen=True)
class Domain:
    """One domain's documents as token ids, each document ending with ``<|endoftext|>``."""

    name: str
    train: list[npt.NDArray[np.uint16]]
    held_out: list[npt.NDArray[np.uint16]]
    held_out_bytes: int
    dropped: int  # training documents left out because they repeat held-out text of another domain


def read_documents(path: Path) -> list[str]:
    """The documents of one ``.txt`` or ``.txt.zst`` file, without their end marks."""
    if path.name.endswith(".zst"):
        import zstandard

        with path.open("rb") as file:
            text = zstandard.ZstdDecompressor().stream_reader(file).read().decode("utf-8")
    else:
        text = path.read_text("utf-8")
    documents = (part.strip("\n") for part in text.split(f"{END_OF_TEXT}\n"))
    return [document for document in documents if document]


def is_held_out(domain: str, document: str) -> bool:
    """Whether a document is in the held-out slice; depends on nothing but its own text."""
    digest = hashlib.blake2b(f"{domain}\0{document}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**64


def _shingles(document: str) -> Iterator[int]:
    words = re.findall(r"\w+", document.lower())
    for start in range(len(words) - SHINGLE_WORDS + 1):
        yield hash(tuple(words[start : start + SHINGLE_WORDS]))


def read_corpus(folder: Path, tokenizer: Tokenizer) -> list[Domain]:
    """Read, split and tokenize every domain of a folder, in the order of their names.

    A training document that shares twelve words in a row with a held-out document of *another* domain is left
    out, for one domain may quote another (inside a domain, documents are taken to be distinct).
    """
    paths = {path.name.split(".")[0]: path for path in sorted(folder.glob("*.txt*")) if _is_domain_file(path)}
    if not paths:
        raise CorpusError(f"no DOMAIN.txt or DOMAIN.txt.zst file in {folder}")
    documents = {name: read_documents(path) for name, path in paths.items()}
    held_out = {name: [d for d in docs if is_held_out(name, d)] for name, docs in documents.items()}
    owner: dict[int, set[str]] = {}
    for name, docs in held_out.items():
        for document in docs:
            for shingle in _shingles(document):
                owner.setdefault(shingle, set()).add(name)
    domains = []
    for name, docs in documents.items():
        kept = [d for d in docs if not is_held_out(name, d)]
        clean = [d for d in kept if not any(owner.get(s, {name}) - {name} for s in _shingles(d))]
        domains.append(
            Domain(
                name,
                train=encode_documents(tokenizer, clean),
                held_out=encode_documents(tokenizer, held_out[name]),
                held_out_bytes=sum(len(d.encode()) for d in held_out[name]),
                dropped=len(kept) - len(clean),
            )
        )
    return domains


def _is_domain_file(path: Path) -> bool:
    return path.name.endswith((".txt", ".txt.zst")) and path.name.split(".")[0].islower()


def encode_documents(tokenizer: Tokenizer, documents: Iterable[str]) -> list[npt.NDArray[np.uint16]]:
    end = tokenizer.token_to_id(END_OF_TEXT)
    encoded = tokenizer.encode_batch(list(documents))
    return [np.array([*encoding.ids, end], dtype=np.uint16) for encoding in encoded]


def rows_of(documents: list[npt.NDArray[np.uint16]], length: int) -> npt.NDArray[np.uint16]:
    """Documents joined and cut into rows ``(rows, length + 1)``: inputs and, shifted by one, targets.

    Neighbouring rows share one token, so that every token but the first is a target once.
    """
    stream = np.concatenate(documents)
    count = (len(stream) - 1) // length
    return np.stack([stream[i * length : i * length + length + 1] for i in range(count)])


def epoch_rows(
    domains: list[Domain], length: int, repeat: dict[str, int], seed: int
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
    """One epoch in a shuffled order: rows ``(rows, length + 1)`` and the domain index of each, ``(rows,)``."""
    rng = np.random.default_rng(seed)
    rows, labels = [], []
    for index, domain in enumerate(domains):
        for _ in range(repeat.get(domain.name, 1)):
            order = rng.permutation(len(domain.train))
            part = rows_of([domain.train[i] for i in order], length)
            rows.append(part)
            labels.append(np.full(len(part), index))
    order = rng.permutation(sum(len(part) for part in rows))
    return np.concatenate(rows)[order], np.concatenate(labels)[order]
