"""Reads the corpus of the bundled model, holds a part out, and makes training rows.

A corpus is a folder of ``DOMAIN.txt`` or ``DOMAIN.txt.zst`` files, UTF-8, whose documents end with a line
``<|endoftext|>``. Files about the corpus (``README.txt``, ``CREDITS-x.txt``) are skipped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zstandard
from tokenizers import Tokenizer

from training.errors import CorpusError

END_OF_TEXT = "<|endoftext|>"
HELD_OUT_SHARE = 0.02
SHINGLE_WORDS = 12
NOT_A_DOMAIN = re.compile(r"(readme|credits|licen[cs]e|notice)\b", re.IGNORECASE)

Tokens = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Domain:
    """One domain's documents as token ids, each document ending with ``<|endoftext|>``."""

    name: str
    train: list[Tokens]
    held_out: list[Tokens]
    held_out_texts: list[str]
    dropped: int  # training documents that repeat held-out text of another domain


def find_domains(folder: Path) -> dict[str, Path]:
    """Return the file of each domain, sorted by name."""
    if not folder.is_dir():
        raise CorpusError(f"corpus folder {folder} does not exist")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = path.name.removesuffix(".zst").removesuffix(".txt")
        if not path.name.endswith((".txt", ".txt.zst")) or NOT_A_DOMAIN.match(name):
            continue
        if name in found:
            raise CorpusError(f"domain {name!r} has two files, {found[name].name} and {path.name}; remove one")
        found[name] = path
    if not found:
        raise CorpusError(f"no DOMAIN.txt or DOMAIN.txt.zst file in {folder}")
    return found


def read_documents(path: Path) -> list[str]:
    """Return the documents of a ``.txt`` or ``.txt.zst`` file, without their end marks."""
    try:
        if path.name.endswith(".zst"):
            with path.open("rb") as file:
                text = zstandard.ZstdDecompressor().stream_reader(file).read().decode("utf-8")
        else:
            text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError, zstandard.ZstdError) as error:
        raise CorpusError(f"cannot read {path}: {error}") from error
    documents = (part.strip("\n") for part in re.split(r"^<\|endoftext\|>$", text, flags=re.MULTILINE))
    return [document for document in documents if document]


def _digest(domain: str, document: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{domain}\0{document}".encode(), digest_size=8).digest(), "big")


def split_documents(domain: str, documents: list[str]) -> tuple[list[str], list[str]]:
    """Return training documents and held-out documents.

    The split depends only on each document's text. If a domain is so small that none would be held out, the document
    with the lowest digest is.
    """
    digests = [_digest(domain, document) for document in documents]
    if len(set(digests)) < 2:  # noqa: PLR2004
        raise CorpusError(
            f"domain {domain!r} has {len(documents)} document(s); it needs one to train on and one to hold out"
        )
    limit = max(int(HELD_OUT_SHARE * 2**64), min(digests) + 1)
    train = [document for document, digest in zip(documents, digests, strict=True) if digest >= limit]
    held_out = [document for document, digest in zip(documents, digests, strict=True) if digest < limit]
    return train, held_out


def _shingles(document: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", document.lower())
    for start in range(len(words) - SHINGLE_WORDS + 1):
        yield tuple(words[start : start + SHINGLE_WORDS])


def _without_leaks(train: dict[str, list[str]], held_out: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the training documents that share no twelve words in a row with held-out documents of other domains."""
    owners: dict[int, set[str]] = {}
    for name, documents in held_out.items():
        for document in documents:
            for shingle in _shingles(document):
                owners.setdefault(hash(shingle), set()).add(name)

    def leaks(name: str, document: str) -> bool:
        return any(owners.get(hash(shingle), {name}) - {name} for shingle in _shingles(document))

    return {name: [d for d in documents if not leaks(name, d)] for name, documents in train.items()}


def read_corpus(folder: Path, tokenizer: Tokenizer) -> list[Domain]:
    """Read, split and tokenize every domain of a folder, sorted by name.

    A training document that shares twelve words in a row with a held-out document of *another* domain is left out,
    because domains may quote each other. Documents of one domain are assumed to be distinct.
    """
    parts = {name: split_documents(name, read_documents(path)) for name, path in find_domains(folder).items()}
    train = {name: documents for name, (documents, _) in parts.items()}
    held_out = {name: documents for name, (_, documents) in parts.items()}
    clean = _without_leaks(train, held_out)
    return [
        Domain(
            name,
            train=encode_documents(tokenizer, clean[name]),
            held_out=encode_documents(tokenizer, held_out[name]),
            held_out_texts=held_out[name],
            dropped=len(train[name]) - len(clean[name]),
        )
        for name in parts
    ]


def encode_documents(tokenizer: Tokenizer, documents: Iterable[str]) -> list[Tokens]:
    """Return the token ids of each document, with ``<|endoftext|>`` at the end."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    if end is None:
        raise CorpusError(f"the tokenizer has no token {END_OF_TEXT}")
    encoded = tokenizer.encode_batch(list(documents))
    return [np.array([*encoding.ids, end], dtype=np.uint16) for encoding in encoded]


def rows_of(documents: list[Tokens], length: int) -> Tokens:
    """Join documents and cut them into rows ``(rows, length + 1)``: inputs and, shifted by one, targets.

    Neighbouring rows share one token, so that every token but the first is a target once. The rest at the end, which
    does not fill a row, is dropped.
    """
    stream: Tokens = np.concatenate([np.empty(0, np.uint16), *documents])
    count = max(0, (len(stream) - 1) // length)
    starts = np.arange(count)[:, None] * length
    rows: Tokens = stream[starts + np.arange(length + 1)]
    return rows


def epoch_rows(
    domains: list[Domain], length: int, repeat: dict[str, int], seed: int
) -> tuple[Tokens, npt.NDArray[np.int64]]:
    """Return a shuffled epoch: rows ``(rows, length + 1)`` and the domain index of each, ``(rows,)``."""
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


class Batches:
    """An endless, seeded order of training rows. A position in it is all the state that training needs."""

    def __init__(self, domains: list[Domain], length: int, repeat: dict[str, int], seed: int, count: int) -> None:
        self.domains, self.length, self.repeat, self.seed, self.count = domains, length, repeat, seed, count
        self._load(0)

    def _load(self, epoch: int) -> None:
        self.rows, self.labels = epoch_rows(self.domains, self.length, self.repeat, self.seed + epoch)
        self.epoch = epoch
        self.per_epoch = len(self.rows) // self.count * self.count
        if not self.per_epoch:
            raise CorpusError(
                f"the corpus has {len(self.rows)} rows of {self.length} tokens, but a batch needs {self.count}; "
                "add text, or lower --batch-tokens"
            )

    def take(self, position: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the batch at ``position`` (in rows) and its domains; an epoch's incomplete last batch is skipped."""
        if position // self.per_epoch != self.epoch:
            self._load(position // self.per_epoch)
        start = position % self.per_epoch
        return self.rows[start : start + self.count].astype(np.int64), self.labels[start : start + self.count]
