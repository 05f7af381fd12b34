"""Fingerprint of a checkpoint, from samples of its files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

HEADER_LENGTH_BYTES = 8
NUM_SAMPLES = 32  # per shard
SAMPLE_BYTES = 64 << 10


def source_fingerprint(files: Iterable[Path], shards: Iterable[Path]) -> str:
    """Return a digest of complete small files, and of each shard's size, header and evenly spread blocks.

    A model that was trained further differs in nearly every block, so samples are enough to detect it.

    Raises:
        OSError: a file can't be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    for path in sorted(shards):
        nbytes = path.stat().st_size
        with path.open("rb") as file:
            header = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
            digest.update(f"{nbytes} {header}\n".encode())
            digest.update(file.read(min(header, nbytes)))
            for sample in range(NUM_SAMPLES):
                file.seek(max(0, nbytes - SAMPLE_BYTES) * sample // (NUM_SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
