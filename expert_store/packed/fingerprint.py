"""Fingerprint of a checkpoint, from samples of its files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import closing

from expert_store.errors import SourceError
from expert_store.file_name import FileName
from expert_store.io.metadata import read_bytes
from expert_store.sources.base import OpenSource, Source

HEADER_LENGTH_BYTES = 8
NUM_SAMPLES = 32  # per shard
SAMPLE_BYTES = 64 << 10


def source_fingerprint(files: Mapping[FileName, bytes], shards: Iterable[Source]) -> str:
    """Return a digest of complete small files, and of each shard's size, header and evenly spread blocks.

    A model that was trained further differs in nearly every block, so samples are enough to detect it.

    Raises:
        SourceError: a shard can't be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)}\n".encode() + content)
    for source in sorted(shards, key=lambda source: source.name):
        try:
            with closing(source.open(is_direct=False)) as opened:
                _update(digest, opened)
        except SourceError as error:
            raise error.naming(source.name) from error
    return digest.hexdigest()


def _update(digest: hashlib.blake2b, opened: OpenSource) -> None:
    nbytes = opened.identity.nbytes
    header = int.from_bytes(read_bytes(opened, 0, min(HEADER_LENGTH_BYTES, nbytes)), "little")
    digest.update(f"{nbytes} {header}\n".encode())
    end = min(HEADER_LENGTH_BYTES + header, nbytes)
    digest.update(read_bytes(opened, HEADER_LENGTH_BYTES, max(0, end - HEADER_LENGTH_BYTES)))
    for sample in range(NUM_SAMPLES):
        start = max(0, nbytes - SAMPLE_BYTES) * sample // (NUM_SAMPLES - 1)
        digest.update(read_bytes(opened, start, min(SAMPLE_BYTES, nbytes - start)))
